import numpy as np
import pytest
import torch

from rumfast import build_model, inference, predict
from rumfast.errors import UsageError
from rumfast.inference import Predictions, embeddings_of, logits_of


@pytest.fixture
def model():
    return build_model("resnet8", 10, width=4, seed=3)


@pytest.mark.parametrize("size", [1, 7, 99, 100])
def test_results_do_not_depend_on_the_batch_size(digits, model, monkeypatch, size):
    whole = predict(model, digits)
    monkeypatch.setattr(inference, "EVALUATION_BATCH", size)
    parts = predict(model, digits)
    np.testing.assert_allclose(parts.train_NC, whole.train_NC, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.test_NC, whole.test_NC, rtol=1e-4, atol=1e-5)


def test_rows_are_examples_in_order_normalised_by_hand(digits, model):
    found = logits_of(model, digits, digits.test)
    image = torch.from_numpy(digits.test.image_NHWC).double() / 255
    normal = (image - torch.tensor(digits.mean, dtype=torch.float64)) / torch.tensor(
        digits.std, dtype=torch.float64
    )
    with torch.no_grad():
        expected = model.double().eval()(normal.permute(0, 3, 1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert found.dtype == np.float32 and found.shape == (100, 10)


def test_embeddings_lead_to_the_logits(digits, model):
    embedding_ND = embeddings_of(model, digits, digits.train).numpy()
    logits = embedding_ND @ model.fc.weight.detach().numpy().T + model.fc.bias.detach().numpy()
    np.testing.assert_allclose(logits, logits_of(model, digits, digits.train), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fits", [1, 7, 40])
def test_batches_are_halved_until_they_fit(digits, model, monkeypatch, fits):
    expected, forward, asked = logits_of(model, digits, digits.test), model.forward, []

    def short_of_memory(image):
        asked.append(len(image))
        if len(image) > fits:
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return forward(image)

    monkeypatch.setattr(model, "forward", short_of_memory)
    torch.testing.assert_close(logits_of(model, digits, digits.test), expected, rtol=1e-5, atol=1e-5)
    assert asked[0] > fits and asked[-1] <= fits


def test_an_image_that_does_not_fit_is_an_error(digits, model, monkeypatch):
    def without_memory(image):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr(model, "forward", without_memory)
    with pytest.raises(UsageError, match="one image of 8×8 does not fit into cpu's memory.*80 GiB"):
        predict(model, digits)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(digits, model, training):
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict(model, digits)
    assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_accuracy_by_hand():
    logits = np.array([[2, 1], [0, 1], [3, 0], [0, 3]], np.float32)
    label = np.array([0, 0, 0, 1])
    found = Predictions(logits, logits[:1], label, np.array([1]))
    assert found.accuracy("train") == 0.75 and found.accuracy("test") == 0.0
    assert found.accuracy("train", np.array([1])) == 0.0 and found.accuracy("train", np.array([0, 1])) == 0.5


def test_margins_belong_to_the_part_asked_for():
    train_NC, test_NC = np.array([[3.0, 1.0]], np.float32), np.array([[0.0, 5.0], [5.0, 0.0]], np.float32)
    found = Predictions(train_NC, test_NC, np.array([1]), np.array([1, 1]))
    assert found.margins().margin.tolist() == [-2.0] and found.margins("test").margin.tolist() == [5.0, -5.0]
    assert found.margins("test").correct.tolist() == [True, False]
