"""Slow versions of what infer.evaluate does, written from VOC's and COCO's rules with plain loops.

A box is four numbers xyxy, an object (picture, label, box, crowd), a detection (picture, label,
box, score). Figures are 0 to 1, None where there is nothing to find.
"""


def overlap(a, b):
    """Give the intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def voc_ap(objects, detections, label, threshold):
    """Follow VOC's development kit, VOCevaldet.m and VOCap.m, for one class."""
    wanted = sum(1 for _, k, _, crowd in objects if k == label and not crowd)
    if wanted == 0:
        return None
    taken = set()
    right, wrong = 0, 0
    recalls, precisions = [0.0], [0.0]
    mine = [one for one in detections if one[1] == label]
    for picture, _, box, _ in sorted(mine, key=lambda one: -one[3]):
        most, closest = -1.0, None
        for number, (where, k, other, _) in enumerate(objects):
            if where == picture and k == label and overlap(box, other) > most:
                most, closest = overlap(box, other), number
        if most >= threshold:
            if objects[closest][3]:
                continue
            if closest in taken:
                wrong += 1
            else:
                taken.add(closest)
                right += 1
        else:
            wrong += 1
        recalls.append(right / wanted)
        precisions.append(right / (right + wrong))
    recalls.append(1.0)
    precisions.append(0.0)
    area = 0.0
    for i in range(1, len(recalls)):
        area += (recalls[i] - recalls[i - 1]) * max(precisions[i:])
    return area


def recall(objects, proposals, threshold, most, low, high):
    """Give the share of the objects (picture, box, area, crowd) of a size that proposals find."""
    wanted, found = 0, 0
    for picture in {one[0] for one in objects}:
        theirs = [one for one in objects if one[0] == picture and not one[3]]
        inside = [low <= one[2] <= high for one in theirs]
        wanted += sum(inside)
        taken = set()
        best = sorted((p for p in proposals if p[0] == picture), key=lambda p: -p[2])[:most]
        for _, box, _ in best:
            chosen = None
            # an object of the size is preferred to any that is not, and then the closer one
            for number, (_, other, _, _) in enumerate(theirs):
                if number in taken or overlap(box, other) < threshold:
                    continue
                rank = (inside[number], overlap(box, other), number)
                if chosen is None or rank > chosen:
                    chosen = rank
            if chosen is not None:
                taken.add(chosen[2])
                found += chosen[0]
    return found / wanted if wanted else None
