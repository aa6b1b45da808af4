"""The method, stage by stage, up to the verdicts. Read this page first.

    select_images -> attribute_images -> segment_heatmaps      what the model leans on (``gather_evidence``, which asks nobody)
    -> render_pictures -> critique_image -> judge_critique     what a vision-language model makes of it (``consult_case``, once for every image)
    -> judge_close_up                                          and of what it is unsure of, seen from near, if that is set (``consult_closer``)
    -> weigh_verdicts                                          which verdicts those on like segments contradict (``contradict_verdicts``)
    -> build_masks -> align_model                              the repair (``fix``)

Each stage's result is saved in the run folder as soon as it is complete and read from there the next time, so that the same command on the same
folder continues where it stopped. No stage sees groups or ground-truth masks: those are for ``scoring``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.utils.data import Dataset

from rightreasons.common.files import write_atomically
from rightreasons.common.memory import release_memory
from rightreasons.common.parallel import map_in_order
from rightreasons.common.progress import Reporter
from rightreasons.common.seeds import seeded
from rightreasons.critic.case import Case, Cases, warn_of_lettering
from rightreasons.critic.controls import controls_for, read_controls
from rightreasons.critic.descriptions import check_descriptions
from rightreasons.critic.judge import read_examples
from rightreasons.critic.panel import Panel, consult_case, consult_closer, find_unsure
from rightreasons.data.loading import check_labels, read_batches
from rightreasons.data.manifest import describe_conflicts, describe_leaks, find_conflicts, find_leaks, list_hashes
from rightreasons.errors import LVLMOverBudget
from rightreasons.explain.evidence import gather_evidence
from rightreasons.lvlm import LVLM
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.ledger.prices import Price, required_price
from rightreasons.lvlm.ledger.throttle import count_workers
from rightreasons.lvlm.wire.privacy import is_loopback
from rightreasons.lvlm.wire.server import read_host
from rightreasons.networks.answers import describe_input
from rightreasons.networks.classifier import hash_weights, load_checkpoint, save_checkpoint
from rightreasons.networks.training import Recipe, train_plainly
from rightreasons.pipeline.agreement import contradict_verdicts
from rightreasons.pipeline.tracking import check_trackers
from rightreasons.project.project import Project, example_file, fresh_model, go_on, open_lvlms, price_file
from rightreasons.records import Control, Criticism, Critique, Verdict
from rightreasons.run import Run, recall_repair
from rightreasons.runs.drawings import load_drawings
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.profile import Recorded


def find(
    project: Project,
    folder: RunFolder,
    *,
    reporter: Reporter,
    allow_remote: tuple[str, ...] = (),
    retry_unknown: bool = False,
    max_usd: float | None = None,
    carried: tuple[LVLM, LVLM] | None = None,
) -> Run:
    """Finds what the project's model leans on and has every segment judged, training the model first if it has no weights yet.

    ``max_usd`` overrides the configuration's. ``carried`` has the critic and the judge of a run that will send no requests, since every answer
    is already in the ledger: such a run needs neither prices nor a server.
    """
    reporter = Recorded(reporter, folder)
    critic, judge = carried or open_lvlms(project, allow_remote)
    prices = {} if carried else ready_backends(project, critic, judge, reporter)
    model = prepare(project, folder, reporter)
    examples = read_examples(example_file(project), seeded(project.config.run.seed, "few-shot"))
    panel = Panel.of(project.config, critic, judge, examples)
    with folder.locked():
        folder.load_verdicts()  # a mistake in lines that a person wrote is reported before anything is paid for
        evidence = gather_evidence(
            project.config, folder, model, project.train, project.validation, project.task.classes, reporter, root=project.root
        )
        cases = Cases(evidence, project.descriptions, folder)
        if critic.address is not None:
            warn_of_lettering(cases, reporter, close_ups=panel.close_up)
        cases.draw(reporter)
        most = project.config.critic.max_usd if max_usd is None else max_usd
        with Ledger(folder.ledger, retry_unknown=retry_unknown, price=prices or None, max_usd=most) as ledger:
            controls, critiques, verdicts, criticism = _judge(cases, panel, ledger, hash_weights(model), reporter)
        if project.config.critic.agreement:
            verdicts, criticism = contradict_verdicts(model, evidence, verdicts, criticism, reporter)
        folder.save_controls(controls)
        folder.save_critiques(critiques)
        folder.save_criticism(criticism)
        folder.save_verdicts(verdicts)
        verdicts = folder.load_verdicts() or []
        # The file is mapped again, so that the pages read so far do not stay in memory.
        attribution, segmentation, selection = folder.load_attribution() or evidence.attribution, evidence.segmentation, evidence.selection
        del evidence, cases
        release_memory()
    run = Run(project, folder, model, selection, attribution, segmentation, critiques, verdicts, controls, criticism)
    run.drawings = load_drawings(folder)
    recall_repair(run)
    if run.queue:
        reporter.note(
            f"{len(run.queue)} of {segmentation.shares.gt(0).sum()} segments wait for a person: report.html lists them, the most important first"
        )
    reporter.note(f"{run.outcome}: {run.explanation}")
    return run


def prepare(project: Project, folder: RunFolder, reporter: Reporter) -> nn.Module:
    """Checks all that can be checked before long work, starts the run folder, and returns the trained model."""
    check_trackers(project.config)
    read_examples(example_file(project), seeded(project.config.run.seed, "few-shot"))
    for note in (*check_descriptions(project.descriptions), *project.task.problems, *project.notes):
        reporter.note(note)
    go_on(project, folder)
    record_manifest(folder, project.task.splits, project.task.classes, reporter)
    model = trained_model(project, folder, reporter)
    reporter.note(describe_input(model, next(read_batches(project.train, batch_size=2)).images))
    return model


def record_manifest(folder: RunFolder, splits: Mapping[str, Dataset], classes: Sequence[str], reporter: Reporter) -> None:
    """Writes manifest.jsonl, which lists every image by its hash, unless it exists; notes images in two splits or under two labels.

    Raises DataError for a label that no class has.
    """
    listed = folder.load_manifest()
    if listed is None:
        with folder.locked(), reporter.stage("manifest") as advance:
            listed = list_hashes(splits, advance)
            for split in splits:
                lines = [line for line in listed if line.split == split]
                check_labels(torch.tensor([line.label for line in lines]), torch.tensor([line.index for line in lines]), len(classes), split)
            folder.save_manifest(listed)
    leaks = find_leaks(listed)
    if leaks:
        reporter.note(describe_leaks(leaks, splits))
    conflicts = find_conflicts(listed)
    if conflicts:
        reporter.note(describe_conflicts(conflicts, listed, splits, classes))


def trained_model(project: Project, folder: RunFolder, reporter: Reporter) -> nn.Module:
    """The project's model if it is trained, else one trained on the training split and saved as model.safetensors in the run folder."""
    model, settings, kept = fresh_model(project), project.config.model, folder.trained_model
    if project.is_trained:
        return model
    if kept.exists():
        load_checkpoint(model, kept)
        return model
    partial = folder.path / "training.pt"
    with folder.locked(), reporter.stage("train") as advance:
        advance(0, settings.epochs)
        train_plainly(
            model,
            project.train,
            recipe=Recipe(settings.epochs, settings.learning_rate),
            batch_size=settings.batch_size,
            seed=project.config.run.seed,
            flips=project.config.data.flips,
            checkpoint=partial,
            progress=advance,
        )
    write_atomically(kept, lambda part: save_checkpoint(model, part, project.task.classes))
    partial.unlink(missing_ok=True)
    return model


def ready_backends(project: Project, critic: LVLM, judge: LVLM, reporter: Reporter) -> dict[str, Price]:
    """Checks before long work that critic and judge can be asked, and returns the known prices."""
    prices = {model.name: required_price(model, price_file(project)) for model in (critic, judge)}
    for model in [critic] if judge is critic else [critic, judge]:
        if (server := str((model.address or {}).get("base_url"))).lower().startswith("http://") and not is_loopback(read_host(server)):
            reporter.note(f"the connection to {server} is not encrypted: anyone on the network between can read the images and the key")
        model.check()
    return prices


def _judge(
    cases: Cases, panel: Panel, ledger: Ledger, weights: str, reporter: Reporter
) -> tuple[list[Control], list[Critique], list[Verdict], Criticism]:
    """Asks critic and judge about the controls and every case; returns their answers, and who judged, by which prompts, at what cost."""

    def consult(case: Case) -> tuple[list[Critique], list[Verdict]]:
        return consult_case(case, panel, ledger.ask)

    workers = count_workers(panel.critic, panel.judge)
    try:
        with reporter.stage("controls") as advance:
            tried = map_in_order(consult, controls_for(panel.critic), workers=workers, advance=advance, stop=ledger.stop)
        controls = read_controls(verdict for _, part in tried for verdict in part)
        for control in controls:
            if control.passed is False:
                reporter.note(f"{panel.critic.name} fails the control {control.name!r}: it says {control.said}. Do not trust its verdicts unchecked")
        with reporter.stage("judge") as advance:
            results = map_in_order(lambda row: consult(cases[row]), cases.rows, workers=workers, advance=advance, stop=ledger.stop)
        results = _look_closer(cases, panel, ledger, results, reporter)
        criticism = Criticism(
            panel.critic.name,
            panel.critic.simulated,
            panel.prompts,
            calls=ledger.count("answered"),
            cached=ledger.cached,
            cost_usd=ledger.cost_usd(),
            weights=weights,
            answered_by={asked: sorted(models) for asked, models in sorted(ledger.answered_by.items())},
        )
    finally:
        for note in ledger.notes:
            reporter.note(note)
    return controls, [critique for part, _ in results for critique in part], [verdict for _, part in results for verdict in part], criticism


def _look_closer(
    cases: Cases, panel: Panel, ledger: Ledger, results: Sequence[tuple[list[Critique], list[Verdict]]], reporter: Reporter
) -> list[tuple[list[Critique], list[Verdict]]]:
    """The answers on all cases after close-ups of what is unsure. They come after every first verdict, so that a budget is spent on those first."""
    answers = dict(zip(cases.rows, results, strict=True))
    unsure = [row for row, (_, verdicts) in answers.items() if find_unsure(panel, verdicts)]
    if not unsure:
        return list(results)

    def consult(row: int) -> tuple[list[Critique], list[Verdict]]:
        critiques, verdicts = answers[row]
        near, settled = consult_closer(cases[row], panel, ledger.ask, verdicts)
        cases.keep_close_ups(row, [verdict.segment for verdict in settled if verdict.close_up is not None])
        return critiques + near, settled

    try:
        with reporter.stage("close-up") as advance:
            workers = count_workers(panel.critic, panel.critic)
            news = map_in_order(consult, unsure, workers=workers, advance=advance, stop=ledger.stop)
    except LVLMOverBudget:
        reporter.note(
            "every image has its first verdicts, and what is left of the budget is not enough for all close-ups of what is unsure: with a larger one "
            "the same command goes on, and with [critic] close_up = false it ends with the first verdicts"
        )
        raise
    return list((answers | dict(zip(unsure, news, strict=True))).values())
