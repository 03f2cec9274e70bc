"""How much a source may hold: what is more is refused while it comes in."""

from pydantic import PositiveFloat, PositiveInt

from pipeline.params import Section


class Limits(Section):  # section `download.limits` of params.yaml
    """Bounds on a download and on what is unpacked of it; 1 gigabyte is 10⁹ bytes."""

    fetch_gigabytes: PositiveFloat  # of one file from the network
    fetch_hours: PositiveFloat  # for one file at one address, retries included
    files: PositiveInt
    gigabytes: PositiveFloat  # of all files, unpacked
    ratio: PositiveFloat  # unpacked bytes for each byte of the archive
