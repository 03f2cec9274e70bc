"""Oxford 102 Flower: MATLAB files give each picture a class, 1 to 102, and each split its pictures, numbered from 1.

SciPy reads MATLAB's format, which is larger than what is needed of it, and nothing in it is run.
"""

import io

from pipeline.data.members import Members
from pipeline.data.named.published import Published

_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}  # and their names in setid.mat
_MATLAB_BYTES = 1 << 16  # they may be packed a thousandfold; those that are published are far smaller

# In the order of the classes. The publisher writes «pink-yellow dahlia?», which not every system takes as a folder.
_NAMES = """
pink primrose; hard-leaved pocket orchid; canterbury bells; sweet pea; english marigold; tiger lily; moon orchid; bird of paradise;
monkshood; globe thistle; snapdragon; colt's foot; king protea; spear thistle; yellow iris; globe-flower; purple coneflower; peruvian
lily; balloon flower; giant white arum lily; fire lily; pincushion flower; fritillary; red ginger; grape hyacinth; corn poppy; prince of
wales feathers; stemless gentian; artichoke; sweet william; carnation; garden phlox; love in the mist; mexican aster; alpine sea holly;
ruby-lipped cattleya; cape flower; great masterwort; siam tulip; lenten rose; barbeton daisy; daffodil; sword lily; poinsettia; bolero
deep blue; wallflower; marigold; buttercup; oxeye daisy; common dandelion; petunia; wild pansy; primula; sunflower; pelargonium; bishop
of llandaff; gaura; geranium; orange dahlia; pink-yellow dahlia; cautleya spicata; japanese anemone; black-eyed susan; silverbush;
californian poppy; osteospermum; spring crocus; bearded iris; windflower; tree poppy; gazania; azalea; water lily; rose; thorn apple;
morning glory; passion flower; lotus; toad lily; anthurium; frangipani; clematis; hibiscus; columbine; desert-rose; tree mallow;
magnolia; cyclamen; watercress; canna lily; hippeastrum; bee balm; ball moss; foxglove; bougainvillea; camellia; mallow; mexican
petunia; bromelia; blanket flower; trumpet creeper; blackberry lily
"""
CLASS_NAMES = tuple(" ".join(_NAMES.split()).split("; "))


def flower_members(published: Published) -> Members:
    """The pictures as `<split>/<class>/<picture>.jpg`. Raises PipelineError."""
    labels = _read_vector(published, "imagelabels.mat", "labels")
    if strange := set(labels) - set(range(1, len(CLASS_NAMES) + 1)):
        raise published.fault("imagelabels.mat", f"holds the label {min(strange)}, and there are {len(CLASS_NAMES)} classes")
    members: Members = {}
    for split, key in _SPLITS.items():
        for number in _read_vector(published, "setid.mat", key):
            if not 1 <= number <= len(labels):
                raise published.fault("setid.mat", f"names picture {number}, and there are {len(labels)} labels")
            picture = f"image_{number:05d}.jpg"
            members[f"{split}/{CLASS_NAMES[labels[number - 1] - 1]}/{picture}"] = published.member(f"jpg/{picture}")
    return members


def _read_vector(published: Published, name: str, key: str) -> list[int]:
    """The whole numbers of a variable in a MATLAB file."""
    from scipy.io import loadmat

    content = published.member(name)()
    if len(content) > _MATLAB_BYTES:
        raise published.fault(name, "is larger than 64 KiB")
    try:
        values = loadmat(io.BytesIO(content), variable_names=[key])[key]
        if values.dtype.kind not in "iu":
            raise TypeError
    except Exception:  # scipy says in any way that such a file is none
        raise published.fault(name, f"is no MATLAB file with whole numbers named {key}") from None
    if values.size > len(published.members):
        raise published.fault(name, f"holds {values.size} numbers named {key}, and there are {len(published.members)} files")
    return [int(value) for value in values.ravel()]
