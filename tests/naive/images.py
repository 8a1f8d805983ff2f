"""Slow judges for the images wing: rules by their definitions, with loops."""

from collections import Counter, defaultdict

import numpy as np


def breaks_of_plan(
    tickets: np.ndarray, labels: np.ndarray, objects: int, per_object: int, cameras: np.ndarray | None
) -> list[str]:
    """All the rules of P x K sampling that a plan breaks, in words; none is what we want."""
    members = defaultdict(list)
    for image, label in enumerate(labels.tolist()):
        if label >= 0:
            members[label].append(image)
    breaks, order, shown = [], [], defaultdict(list)
    for number, ticket in enumerate(tickets.tolist()):
        groups = [ticket[start : start + per_object] for start in range(0, len(ticket), per_object)]
        drawn = [labels[group[0]] for group in groups]
        for label, group in zip(drawn, groups, strict=True):
            if any(image not in members[label] for image in group):
                breaks.append(f"ticket {number}: a group with noise or of two clusters")
            if cameras is None:
                shown[label] += group
                if not even(group, members[label]):
                    breaks.append(f"ticket {number}: images of cluster {label} unevenly repeated")
            else:
                breaks += [f"ticket {number}: {rule}" for rule in breaks_of_group(group, members[label], cameras)]
        if not even(drawn, list(members)):
            breaks.append(f"ticket {number}: clusters unevenly repeated")
        order += drawn
    breaks += ["clusters do not take turns"] * (not takes_turns(order, list(members)))
    for label, images in shown.items():
        breaks += [f"images of {label} do not take turns"] * (not takes_turns(images, members[label]))
    return breaks


def breaks_of_group(group: list[int], members: list[int], cameras: np.ndarray) -> list[str]:
    """The camera rule: companions from other cameras than the anchor's, one per camera in turn, then repeated."""
    anchor, companions = group[0], group[1:]
    others = [image for image in members if cameras[image] != cameras[anchor]]
    if not others:
        return [] if even(group, members) else ["companions of the only camera unevenly repeated"]
    if not even(companions, others):
        return ["companions unevenly repeated, or of the anchor's camera"]
    has = Counter(cameras[others].tolist())
    for start in range(0, len(companions), len(others)):
        given: Counter[int] = Counter()
        for image in companions[start : start + len(others)]:
            given[int(cameras[image])] += 1
            ahead = max(given.values())
            if any(given[camera] < ahead - 1 and given[camera] < has[camera] for camera in has):
                return ["a camera was passed over although it had images left"]
    return []


def even(drawn: list, cards: list) -> bool:
    """Every card as often as every other, give or take one, and nothing but cards."""
    times = Counter(drawn)
    return set(times) <= set(cards) and max(times[card] for card in cards) - min(times[card] for card in cards) <= 1


def takes_turns(drawn: list, cards: list) -> bool:
    """Every card once before any comes twice: each round of the deck is a permutation, the last one cut off."""
    size = len(cards)
    return all(even(drawn[start : start + size], cards) for start in range(0, len(drawn), size))
