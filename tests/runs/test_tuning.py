"""epochs.jsonl: the epochs of one job, whatever was killed and begun again."""

from rightreasons.records import TunedEpoch
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.tuning import add_epoch, load_epochs


def test_epochs_of_a_job_come_back_once_each(tmp_path):
    folder = RunFolder(tmp_path)
    assert load_epochs(folder, "a") == []
    written = [("a", 1, 0.5), ("a", 2, 0.6), ("b", 1, 0.1), ("a", 2, 0.7), ("a", 3, 0.8)]  # killed after 2, which was done again
    for job, epoch, accuracy in written:
        add_epoch(folder, job, TunedEpoch(epoch, 1e-3, accuracy, accuracy / 2))
    assert [(epoch.epoch, epoch.accuracy) for epoch in load_epochs(folder, "a")] == [(1, 0.5), (2, 0.7), (3, 0.8)]
    assert [epoch.accuracy for epoch in load_epochs(folder, "b")] == [0.1]


def test_after_a_collapse_only_the_second_attempt_counts(tmp_path):
    folder = RunFolder(tmp_path)
    for rate, epoch in ((1e-3, 1), (1e-3, 2), (2.5e-4, 1)):
        add_epoch(folder, "a", TunedEpoch(epoch, rate, 0.5, 0.5))
    assert [(epoch.epoch, epoch.learning_rate) for epoch in load_epochs(folder, "a")] == [(1, 2.5e-4)]
