"""Groups by definition: rows repeated, double loops."""

import math

import numpy as np


def repeated(distance, counts):
    """The dense distances of all copies, at distance 0 of each other, and the first copy of each row."""
    copies = [row for row, count in enumerate(counts) for _ in range(count)]
    table = np.array([[0.0 if i == j else distance[i][j] for j in copies] for i in copies], np.float32)
    return table, [copies.index(row) for row in range(len(counts))]


def confidences(distance, labels):
    """Mean of 1 - distance to the others of the own group; 0 in none, and for a group of one."""
    found = []
    for i, own in enumerate(labels):
        others = [j for j in range(len(labels)) if labels[j] == own and j != i]
        found.append(sum(1 - distance[i][j] for j in others) / len(others) if own != -1 and others else 0.0)
    return found


def tracks(features, numbers, cameras):
    """(features, row of each image, counts, cameras) in order of first image."""
    names = []
    for image, number in enumerate(numbers):
        name = ("image", image) if number == -1 else ("track", number)
        names.append(name)
    rows = list(dict.fromkeys(names))
    of_image = [rows.index(name) for name in names]
    means, seen = [], []
    for row in range(len(rows)):
        mine = [image for image in range(len(names)) if of_image[image] == row]
        sums = [sum(float(features[image][d]) for image in mine) for d in range(len(features[0]))]
        length = math.sqrt(sum(value * value for value in sums))
        means.append([value / length for value in sums])
        of = {int(cameras[image]) for image in mine}
        seen.append(of.pop() if len(of) == 1 else -1)
    return np.array(means), of_image, [of_image.count(row) for row in range(len(rows))], seen


def by_size(labels):
    """Groups numbered by falling size, then by first image."""
    groups = sorted({c for c in labels if c != -1}, key=lambda c: (-list(labels).count(c), list(labels).index(c)))
    return [-1 if c == -1 else groups.index(c) for c in labels]


def centre(features, members):
    """The member with the highest inner product with the sum of all; the first of equal ones."""
    sums = [sum(float(features[i][d]) for i in members) for d in range(len(features[0]))]
    scores = [sum(float(x) * y for x, y in zip(features[i], sums, strict=True)) for i in members]
    return next(i for i, score in zip(members, scores, strict=True) if score >= max(scores) - 1e-9)
