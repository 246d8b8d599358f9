"""Finds by the name of a folder whether it holds a split, masks, or only images.

Data sets write split names in many ways: 'Training', 'train2017', 'seg_train', 'TrainingSet'.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping

# The one table of split names. 'predict' and 'unlabeled' hold images that have no labels.
_WORDS = {
    "train": "train training trains trn trainset traindata trainingset",
    "test": "test testing tests tst testset testdata testingset",
    "val": "val valid validation validate validating valset eval evaluation dev devel development "
    "holdout heldout validationset",
    "predict": "pred predict prediction predictions submission",
    "unlabeled": "unlabeled unlabelled extra",
}
_ROLES = {word: role for role, words in _WORDS.items() for word in words.split()} | {
    "trainval": "train"
}
STANDARD = ("train", "test", "val", "validation")  # names that stand for any name of their role
NOT_TRAIN = frozenset(("test", "val", "predict"))  # roles of images that must not be trained on
# Words beside a split word that do not change its meaning.
_FILLERS = frozenset(
    "set sets data dataset datasets image images img imgs jpeg jpg png split splits folder dir seg "
    "cls photos pictures pics small full raw resized cropped crops x v version ilsvrc the of and "
    "p px clean final".split()
)
_KNOWN = _FILLERS | _ROLES.keys()
_IMAGES = frozenset(
    "images image imgs img jpegimages pngimages photos photo pictures picture pics rgb frames "
    "jpegs leftimgbit".split()
)
_MASKS = frozenset(
    "annotations annotation annots annot masks mask labels label segmentation segmentations "
    "segmentationclass segmentationobject segmentationclassaug segmasks gt gtfine gtcoarse "
    "groundtruth groundtruths trimaps trimap labelids labelimages instances panoptic depth "
    "labeltxt semantic semantics bboxes imagesets thumbnails thumbnail thumbs previews".split()
)
_MASK_ENDINGS = tuple(
    f"{mark}{word}"
    for mark in "_-. "
    for word in (
        "mask masks seg segmentation gt groundtruth labelids instanceids label trimap".split()
    )
)
_PARTS = re.compile(r"(fold|split|part|batch|subset|shard)[ _\-]?\d+", re.IGNORECASE)
# 'valSet' and 'TRAINSet' are two words; digits separate words.
_WORD = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def words(name: str) -> list[str]:
    """Returns the words of a name in lower case, without digits: 'valSet2' gives [val, set]."""
    found = _WORD.findall(unicodedata.normalize("NFC", name))
    return [word.casefold() for part in found for word in _in_camel_case(part)]


def _in_camel_case(part: str) -> list[str]:
    """Returns the words of 'valSet'; a word in odd case, such as 'tEST', is one word."""
    return [part] if part.casefold() in _KNOWN else _CAMEL.split(part)


def role(name: str) -> str:
    """Returns 'train', 'test', 'val', 'predict', 'unlabeled', or '' for a name of no split."""
    return _role([word for word in words(name) if word not in _FILLERS])


def roles(names: Collection[str]) -> dict[str, str]:
    """Returns the role of each of the folders that lie side by side.

    A name such as 'cats_train' is a split if a folder such as 'cats_test' is beside it.
    """
    found = {name: role(name) for name in names}
    pairs: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        own, rest = _affixed(words(name))
        if own and not found[name] and not _MASKS & set(rest):
            pairs.setdefault(rest, {})[name] = own
    for group in pairs.values():
        if len(set(group.values())) > 1:
            found |= group
    return found


def looks_like_split(name: str) -> bool:
    """Returns whether a class name may be a split: 'fold2', or a split word at either end."""
    return bool(role(name) or _affixed(words(name))[0] or _PARTS.fullmatch(name))


def holds_images(name: str) -> bool:
    """Returns whether a folder name says only that it holds images, such as 'JPEGImages'."""
    return "".join(words(name)) in _IMAGES


def holds_masks(name: str) -> bool:
    """Returns whether a folder name says that it holds masks or copies, such as 'gtFine'."""
    return "".join(words(name)) in _MASKS


def masked(stem: str) -> str:
    """Returns the name of the image of which a file is the mask: '7' for '7_mask', '' for others.

    Args:
      stem: a file name without its ending.
    """
    plain = stem.rstrip("0123456789")
    if not plain.lower().endswith(_MASK_ENDINGS):  # of a million names few do
        return ""
    return plain[: -max(len(end) for end in _MASK_ENDINGS if plain.lower().endswith(end))]


def _role(found: list[str]) -> str:
    named = {_ROLES.get(word, "") for word in found}
    if named == {"train", "val"}:
        return "train"
    return named.pop() if len(named) == 1 else ""


def _affixed(found: list[str]) -> tuple[str, tuple[str, ...]]:
    """Returns the role of the first or the last word, and the other words; '' for no role."""
    for index in (0, -1):
        if len(found) > 1 and found[index] in _ROLES:
            rest = found[1:] if index == 0 else found[:-1]
            return _ROLES[found[index]], tuple(rest)
    return "", ()


def find(
    names: Iterable[str],
    role_of: Mapping[str, str],
    wanted: str,
    ambiguous: Callable[[list[str]], str],
) -> str:
    """Returns the split of that name, else of that role; '' if there is none.

    Args:
      names: of the splits that there are.
      role_of: the role of each name, see `roles`.
      wanted: a name; only those of `STANDARD` also stand for other names.
      ambiguous: returns the error message for several splits of the role.

    Raises:
      ValueError: if several splits have the role.
    """
    names, own = list(names), role(wanted)
    if wanted in names:
        return wanted
    if not own or wanted not in STANDARD:
        return ""
    found = sorted(name for name in names if role_of[name] == own)
    if len(found) > 1:
        raise ValueError(ambiguous(found))
    return found[0] if found else ""
