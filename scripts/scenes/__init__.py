"""The embedded scenes: see make_scenes.py."""
