"""What becomes of too few clusters, step by step."""


def count(labels):
    return len({int(label) for label in labels if label >= 0})


def settled(labels, policy, least, factor, tries, eps, largest, again, previous):
    """Labels, eps and figures; None where the run would end."""
    if policy == "stop":
        return (labels, eps, {}) if count(labels) >= least else None
    if count(labels) >= least:
        return labels, eps, {"collapsed": 0.0}
    figures = {"collapsed": 1.0, "found": float(count(labels))}
    if policy == "keep_previous":
        return None if previous is None else (previous, eps, figures | {"kept_previous": 1.0})
    done = 0
    while done < tries and count(labels) < least and any(label < 0 for label in labels) and eps * factor < largest:
        eps, done = eps * factor, done + 1
        labels = again(eps)
        figures[f"relax_{done}_eps"], figures[f"relax_{done}_clusters"] = eps, float(count(labels))
    return (labels, eps, figures | {"relax_tries": float(done)}) if count(labels) >= least else None
