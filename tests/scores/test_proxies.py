import numpy as np
import pytest
import torch

import rumfast as rf
from rumfast.errors import DataError
from rumfast.scores import ProxyScores, ProxyTotals, TrainingEvents


def test_means_over_epochs_by_hand():
    totals = ProxyTotals(3)
    certain, even = [1000.0, 0.0], [0.0, 0.0]
    totals.add(torch.tensor([2, 0]), torch.tensor([certain, even]), torch.tensor([0, 0]))
    totals.add(torch.tensor([0, 2]), torch.tensor([certain, even]), torch.tensor([1, 1]))
    found = totals.scores()
    # Example 0: even and right by its tie, then certain and wrong. Example 2: certain, right; even, wrong.
    np.testing.assert_allclose(found.confidence_N, [0.25, np.nan, 0.75])
    np.testing.assert_allclose(found.max_confidence_N, [0.75, np.nan, 0.75])
    np.testing.assert_allclose(found.negative_entropy_N, [-np.log(2) / 2, np.nan, -np.log(2) / 2], rtol=1e-6)
    np.testing.assert_allclose(found.binary_accuracy_N, [0.5, np.nan, 0.5])


def test_observing_does_not_change_training_and_sees_each_example_once_per_epoch(digits, tiny_config):
    seen = torch.zeros(len(digits), dtype=torch.int64)

    def observe(id_B, logits_BC, label_B):
        seen[id_B] += 1
        assert not logits_BC.requires_grad and logits_BC.shape == (len(id_B), 10)
        assert label_B.tolist() == digits.train.label_N[id_B.numpy()].tolist()

    watched = rf.train(digits, tiny_config, observe=observe)
    alone = rf.train(digits, tiny_config)
    assert seen.tolist() == [tiny_config.epochs] * len(digits)
    for one, other in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_flipped_labels_have_the_lowest_proxies(packed):
    data = rf.load_dataset(packed).take(400, 50)
    totals = ProxyTotals(len(data))
    rf.train(data, rf.TrainConfig(arch="resnet8", epochs=6, batch_size=64), observe=totals.add)
    flipped = np.isin(np.arange(len(data)), data.flipped)
    assert flipped.sum() > 20
    for name in ("confidence_N", "binary_accuracy_N"):
        score = getattr(totals.scores(), name)
        assert score[flipped].mean() < score[~flipped].mean() - 0.2


def test_nothing_added_is_an_error():
    with pytest.raises(DataError, match="no forward pass was added"):
        ProxyTotals(3).scores()
    assert ProxyScores._fields[0] == "confidence_N"


def test_events_tell_in_which_epoch_an_example_was_right():
    events = TrainingEvents(4, 3)
    logits = {True: [2.0, 0.0], False: [0.0, 2.0]}  # of an example whose label is 0
    outcomes = {0: [True, False, True], 2: [False, True], 3: [True]}
    for epoch, order in enumerate(([2, 0, 3], [0, 2], [0])):  # example 1 is never trained on
        logits_BC = torch.tensor([logits[outcomes[id][epoch]] for id in order])
        events.add(torch.tensor(order), logits_BC, torch.zeros(len(order), dtype=torch.int64))
    expected = [[1, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]]
    assert events.learned_EN.int().tolist() == expected
    np.testing.assert_allclose(events.scores().binary_accuracy_N, [2 / 3, np.nan, 1 / 2, 1])
