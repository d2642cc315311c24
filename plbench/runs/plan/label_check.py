"""Check before a run starts that there are labels to learn from and to score."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from plbench.data.label_file import count_contradictions
from plbench.data.labels import PartialLabels
from plbench.data.simulation import LABEL_FILE, parse
from plbench.errors import DataError
from plbench.runs.protocol import ProtocolData
from plbench.spec import TrainPart

_SHOWN = 60  # maximum characters of a name in a message


def check_learnable(protocol_data: ProtocolData, part: TrainPart) -> None:
    """Check that some labels of the training images are known.

    Args:
        protocol_data: a dataset under a protocol.
        part: to train on.

    Raises:
        DataError: if no label is known, with what would help.
    """
    whole, protocol = protocol_data.whole_train, protocol_data.protocol
    if whole.labels.num_known == 0:  # a simulation would reject these as partial
        number = len(whole.rows)
        fix = "check what the files call present and absent (plbench data stats shows what was read)"
    elif (chosen := protocol_data.train(part)).labels.num_known == 0:
        number = len(chosen.rows)
        fix = f"the simulation {protocol.simulation} hides them all; give one that keeps more with `simulate=`"
        if protocol.simulation == "none":
            fix = "the known ones are all in the part that is held out; use more labels"
    else:
        return
    raise DataError(
        f"no label of the {number:,} images to train on in split {whole.split!r} of {protocol_data.dataset.name!r} is "
        f"known, so there is nothing to learn; {fix}"
    )


def notes_on(protocol_data: ProtocolData) -> tuple[str, ...]:
    """Return sentences on how the labels were read, and on classes with too few labels to learn.

    Args:
        protocol_data: only splits that are already open are considered.
    """
    said = protocol_data.dataset.notes()
    train = protocol_data.protocol.train_split
    read = [
        note if split == train else f"split {split!r}: {note}"
        for split in protocol_data.open_splits
        for note in said.get(split, ())
    ]
    whole, labels = protocol_data.whole_train.labels, protocol_data.partial_labels
    is_of_file = parse(protocol_data.protocol.simulation).kind == LABEL_FILE
    if is_of_file and (wrong := count_contradictions(labels, whole)):
        read.append(f"{wrong:,} labels of the file contradict the dataset's own")
    if bare := int(np.count_nonzero(np.diff(whole.matrix.indptr) == 0)):
        read.append(f"{bare:,} of {whole.num_images:,} images in split {train!r} have no known label")
    positives, negatives = labels.counts()
    few = {
        "no known label in train: nothing is learned about them": (positives == 0) & (negatives == 0),
        "no known positive in train": (positives == 0) & (negatives > 0),
    }
    of_few = [
        f"{is_so.sum():,} of {labels.num_classes:,} classes have {what} (the first: "
        f"{labels.class_names[np.argmax(is_so)]!r:.{_SHOWN}})"
        for what, is_so in few.items()
        if is_so.any()
    ]
    return tuple(dict.fromkeys([*read, *notes_on_names(labels), *of_few]))


def notes_on_names(labels: PartialLabels) -> list[str]:
    """Return sentences on classes that share a name.

    Args:
        labels: with ids and names.
    """
    ids_by_name: dict[str, list[str]] = defaultdict(list)
    for class_id, name in zip(labels.class_ids, labels.class_names, strict=True):
        ids_by_name[" ".join(name.split())].append(class_id)
    shared = {name: ids for name, ids in ids_by_name.items() if len(ids) > 1}
    if not shared:
        return []
    name, ids = next(iter(shared.items()))
    shown = [*ids[:4], "…"] if len(ids) > 4 else ids
    listed = f"{', '.join(shown[:-1])} and {shown[-1]}"
    first = f"classes {listed} are {'both' if len(ids) == 2 else 'all'} named {name!r:.{_SHOWN}}"
    more = f", and {len(shared) - 1:,} more names are shared by several classes" if len(shared) > 1 else ""
    return [
        f"{first}{more}; each is treated as a class of its own, absent in complete labels where only the other is "
        "marked; give them one id if they are the same"
    ]
