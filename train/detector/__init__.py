"""Faster R-CNN as the papers build it: backbones, RPN, box head and focus head."""
