"""Split the pictures into train, val and test: audit them all, write ImageFolder trees, and list what was left out."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from pipeline.core import stage
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_json, write_table
from pipeline.core.sections import Section
from pipeline.pictures import audit
from pipeline.pictures.audit import Finding, check_classes, check_every_class_everywhere, draw_thumbnails, quarantine_rows, summarise_audit
from pipeline.pictures.inspection import Groups, PictureInfo, exact_duplicates, inspect_all, near_duplicates
from pipeline.pictures.manifest import write_manifest
from pipeline.pictures.splits import GroupTable, deal, place, read_groups, write_trees
from pipeline.sources.layout import LABELS, ClassFile, Folders, Labelled, Layout, choose_folders, find_layout, read_labels
from pipeline.sources.shards import read_index

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Params(Section):  # section `split` of params.yaml
    overridable = ("seed",)

    seed: NonNegativeInt  # null: the top-level seed
    val: Fraction | str  # a share of the pictures that the archive assigns to no split, or the name of a folder in the archive
    test: Fraction | str  # the same; an archive's own test folder comes first
    folders: Folders  # which folders of the archive, or values of its table, are splits: auto (by their names), none, or what each is
    group: str | GroupTable | None  # the part of a path that names a group, or a table; null: the table of labels, if it has groups
    similarity: Annotated[float, Field(gt=0, le=1)] | None  # correlation of two thumbnails from which the pictures stay together
    folders_up_to: NonNegativeInt  # pictures; those of a larger set stay in the shards
    leak: Literal["repair", "fail"]  # what to do if labels conflict, or if given splits share pictures


def find_labels(raw: Path, names: Iterable[str], folders: Folders) -> Labelled:
    """The labels of the pictures: by the table that the stage `download` wrote beside them, or else by their folders."""
    table = raw / LABELS
    return read_labels(table.read_bytes(), folders) if table.is_file() else Labelled(find_layout(names, "data/raw", folders), {}, [])


def use_folders(layout: Layout, params: Params) -> tuple[list[ClassFile], dict[str, str], dict[str, list[str]]]:
    """The files that are used, `image_id: split` of those that the archive's own folders put into val or test, and the names of the rest.

    The rest is by split folder: it is in those that are not used.
    """
    used = choose_folders(layout, params.val, params.test)
    spare = defaultdict[str, list[str]](list)
    for entry in layout.entries:
        if entry.folder is not None and entry.folder not in used:
            spare[entry.folder].append(entry.name)
    entries = [entry for entry in layout.entries if entry.folder not in spare]
    return entries, {entry.name: used[entry.folder] for entry in entries if entry.folder and used[entry.folder] != "train"}, spare


def relate(
    infos: Mapping[str, PictureInfo], labels: Mapping[str, str], given: Mapping[str, str], groups: Mapping[str, str], params: Params
) -> tuple[list[Finding], Groups, dict[str, str]]:
    """The findings about several pictures (duplicates, conflicts, leaks), the groups of the pictures that remain, and the user's.

    `groups`: `image_id: group` according to the table of labels, which count if `split.group` is null.
    """
    exact = exact_duplicates(infos)
    conflicts = [*audit.label_conflicts(exact, labels)]
    contradicted = left_out(conflicts)
    rest = {name: info for name, info in infos.items() if name not in contradicted}
    near = near_duplicates(rest, params.similarity) if params.similarity else []
    agreeing = [names for names in exact if names[0] in rest]
    user_groups = read_groups(rest, params.group) or {name: groups[name] for name in sorted(rest) if name in groups}
    together, first = Groups(rest), dict[str, str]()
    for names in (*agreeing, *near, *((name, first.setdefault(group, name)) for name, group in user_groups.items())):
        together.join(names)
    leaks = [*audit.leaks({name: given.get(name, "train") for name in rest}, together, user_groups, rest)]
    return (
        [
            *conflicts,
            *leaks,
            *audit.duplicates(agreeing, near, labels, left_out(leaks)),
            *audit.ungrouped(rest, user_groups),
        ],
        together,
        user_groups,
    )


def left_out(findings: Iterable[Finding]) -> set[str]:
    """The pictures that no split contains."""
    return {name for finding in findings for name in finding.left_out}


def refuse_leaks(findings: Sequence[Finding]) -> None:
    """Raise PipelineError if labels conflict or given splits share pictures."""
    faults = [finding for finding in findings if finding.kind in ("contradicted", "label_conflict", "leak")]
    if faults:
        count = f"{len(faults)} conflict{'s' * (len(faults) != 1)} of labels or splits"
        raise PipelineError(f"data/raw: {count}, first: {faults[0].sentence}; correct the source, or set split.leak: repair")


def assign(
    entries: list[ClassFile], given: Mapping[str, str], together: Groups, user_groups: Mapping[str, str], params: Params
) -> dict[str, str]:
    """`image_id: split` of every picture: the archive's own folders first, fractions for the rest. Raises PipelineError."""
    rest = {entry.name: entry.label for entry in entries if entry.name not in given}
    shares = {name: value for name, value in (("val", params.val), ("test", params.test)) if name not in given.values()}
    train_share = 1 - sum(float(value) for value in shares.values())
    if train_share <= 0:
        raise PipelineError(f"params.yaml: split: val {params.val} and test {params.test} leave nothing to train on; lower them")
    fractions = {"train": train_share, **{name: float(value) for name, value in shares.items()}}
    # A group of the user keeps its name when it grows.
    dealt = deal(rest, {name: together.of(name) for name in rest}, fractions, params.seed, user_groups)
    return {entry.name: given.get(entry.name) or dealt[entry.name] for entry in entries}


def run(params: Params, raw: Path, splits: Path, manifest: Path, quarantine: Path, audit_json: Path) -> None:
    """Inspect every picture, leave out the unusable ones, deal the rest, and write the trees and tables."""
    files = read_index(raw)
    labelled = find_labels(raw, files, params.folders)
    layout, of_table = labelled.layout, audit.of_table(labelled.faults)
    for folder, count in layout.unlabelled.items():
        print(f"{folder}: {count} {'file has' if count == 1 else 'files have'} no label and will be left out")
    entries, given, spare = use_folders(layout, params)
    for folder, names in spare.items():
        spared = f"{len(names)} file{'s' * (len(names) != 1)}"
        print(f"{folder}: {spared} will be left out, since split.val and split.test name other folders; split.folders can make it train")
    labels = {entry.name: entry.label for entry in entries}
    inspected = inspect_all({name: file for name, file in files.items() if name in labels})
    infos = {name: inspection.info for name, inspection in inspected.items() if inspection.info}
    relations, together, user_groups = relate(infos, labels, given, labelled.groups, params)
    if params.leak == "fail":
        refuse_leaks([*of_table, *relations])
    findings = [*of_table, *audit.unusable(layout.outside, spare, inspected), *relations, *audit.mirrors(infos), *audit.oddities(infos)]
    unused = left_out(findings)
    used = {name: infos[name] for name in sorted(infos.keys() - unused)}
    findings += audit.outliers(used)
    check_classes(entries, inspected, unused)
    entries = sorted((entry for entry in entries if entry.name not in unused), key=lambda entry: entry.name)
    pictures = place(entries, inspected, infos, assign(entries, given, together, user_groups, params), together)
    check_every_class_everywhere(pictures)
    pictures = write_trees(pictures, files, infos, splits, params.folders_up_to)
    thumbnails = draw_thumbnails(files, findings)
    for finding in findings:
        if finding.kind == "mirror":
            print(f"warning: data/raw: {finding.detail}")
    rows = quarantine_rows(findings)
    write_manifest(manifest, pictures)
    write_table(quarantine, ["image_id", "reason"], rows)
    write_json(audit_json, summarise_audit(pictures, used, findings, thumbnails))
    if rows:
        print(f"{len(rows)} of {len(pictures) + len(rows)} files were left out; {quarantine} lists them with the reasons")


if __name__ == "__main__":
    stage.main("split", Params, run)
