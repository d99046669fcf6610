"""The report of a sweep: a configuration, a picture and a table of the best trials."""

import warnings
from contextlib import suppress
from statistics import stdev

import optuna
from optuna import visualization
from optuna.trial import FixedTrial, FrozenTrial

from mnist_lightning.console import program, table
from mnist_lightning.errors import UserError
from mnist_lightning.files import written_whole
from mnist_lightning.use.sweep.study import KEPT, Study, short, shown
from mnist_lightning.use.sweep.trial_run import TrialRun


def report(study: Study) -> str:
    """Write `best.yaml` and `sweep.html`. Return the best trials, and what to type next.

    Raises:
        UserError: No trial has finished.
    """
    if not (best := study.best(KEPT)):
        raise UserError(f"none of the trials in {study.folder} has finished; try other ranges")
    write_configuration(study, best[0])
    write_picture(study)
    lines = [
        table_of(best),
        importance(study, best[0]),
        f"Picture:    {study.folder / 'sweep.html'}",
        f"Train best: {program()} fit --config {study.folder / 'best.yaml'}",
        f"See curves: tensorboard --logdir {study.folder}",
    ]
    return "\n".join(filter(None, lines))


def write_configuration(study: Study, best: FrozenTrial) -> None:
    """Write `best.yaml`: all settings of the best trial, with its first seed."""
    settings = study.search.suggest(FixedTrial(best.params))
    (run, seed), *_ = study.runs(best.number).items()
    cli = TrialRun(study.search.base, settings | {"seed_everything": seed}, run)
    with written_whole(study.folder / "best.yaml") as partial:
        partial.write_text(cli.parser.dump(cli.config, skip_none=False), encoding="utf-8")


def write_picture(study: Study) -> None:
    """Write `sweep.html`: the history of the scores, and the scores along each setting."""
    drawings = (visualization.plot_optimization_history, visualization.plot_slice)
    figures = [draw(study.record, target_name="val/acc") for draw in drawings]
    parts = [figure.to_html(full_html=False, include_plotlyjs=figure is figures[0]) for figure in figures]
    with written_whole(study.folder / "sweep.html") as partial:
        partial.write_text("".join(parts), encoding="utf-8")


def table_of(best: list[FrozenTrial]) -> str:
    scores = [trial.user_attrs["scores"] for trial in best]
    columns = [["trial", *(str(trial.number) for trial in best)], ["val/acc", *(f"{t.value:.4f}" for t in best)]]
    if len(scores[0]) > 1:
        columns.append(["sd", *(f"{stdev(one):.4f}" for one in scores)])
    columns += [[short(key), *(shown(trial.params[key]) for trial in best)] for key in best[0].params]
    return table([*zip(*columns, strict=True)])


def importance(study: Study, best: FrozenTrial) -> str:
    """Return a line about the importance of each setting. It is empty if Optuna warns that the scores show none."""
    with warnings.catch_warnings(action="error", category=UserWarning), suppress(UserWarning):
        if len(best.params) > 1:
            weights = optuna.importance.get_param_importances(study.record)
            return "Importance: " + ", ".join(f"{short(key)} {weight:.0%}" for key, weight in weights.items())
    return ""
