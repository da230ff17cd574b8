"""The LightningModule: losses and metrics over all scored outputs, optimisers, clipping."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from torch_rnn.data.batches import Batch
from torch_rnn.losses import cross_entropy
from torch_rnn.nn.members import joined, member_logits, rows_of_members
from torch_rnn.training.classifier import Classifier
from torch_rnn.training.evidence import disagreement
from torch_rnn.training.trained_rnn import cosine


def batch(B, readout, seed):
    g = torch.Generator().manual_seed(seed)
    x, lengths = torch.randint(9, (B, 6), generator=g), torch.randint(1, 7, (B,), generator=g)
    return Batch(x, lengths, torch.randint(2, (B, 6) if readout == "every" else (B,), generator=g))


class Data(LightningDataModule):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def trainer(tmp_path, **settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        enable_model_summary=False,
        **quiet,
        **settings,
    )


@pytest.mark.parametrize("readout", ["last", "mean", "every"])
@pytest.mark.parametrize("C", [1, 2])
def test_metrics_weigh_every_scored_output_alike(tmp_path, readout, C):
    seed_everything(0)
    model = Classifier(9, 5, C, readout=readout)
    batches = [batch(8, readout, 0), batch(3, readout, 1)]  # the last one is smaller
    (found,) = trainer(tmp_path).test(model, Data(batches), verbose=False)
    losses, hits = [], []
    for x, lengths, labels, *_ in batches:
        for row, length, label in zip(x, lengths, labels, strict=True):
            logits = model.rnn(row[:length])
            label = label[:length] if readout == "every" else label
            losses += cross_entropy(logits, label).reshape(-1).tolist()
            hits += (model.rnn.predict(row[:length]) == label).reshape(-1).tolist()
    assert found["test/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["test/accuracy"] == pytest.approx(sum(hits) / len(hits), rel=1e-6)


@pytest.mark.parametrize("C", [1, 2])
def test_distributions_are_scored_by_their_most_probable_class(tmp_path, C):
    model = Classifier(9, 5, C)
    x, lengths, labels, *_ = batch(8, "last", 0)
    soft = 0.7 * torch.eye(2)[labels] + 0.3 * torch.eye(2)[1 - labels]
    (found,) = trainer(tmp_path).test(model, Data([Batch(x, lengths, soft)]), verbose=False)
    logits = model.rnn(x, lengths)
    expected = 0.7 * cross_entropy(logits, labels) + 0.3 * cross_entropy(logits, 1 - labels)
    assert found["test/loss"] == pytest.approx(expected.mean().item(), rel=1e-5)
    accuracy = (model.rnn.predict(x, lengths) == labels).float().mean()
    assert found["test/accuracy"] == pytest.approx(float(accuracy))


@pytest.mark.parametrize(("algorithm", "clip"), [("value", 1e-3), ("norm", 1e-3)])
def test_the_trainer_clips(tmp_path, algorithm, clip):
    seed_everything(0)
    model = Classifier(9, 5, 1, optimizer="sgd", learning_rate=1.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm}
    trainer(tmp_path, log_every_n_steps=1, **settings).fit(model, Data([batch(8, "last", 0)]))
    moved = torch.cat([(p.detach() - before[name]).flatten() for name, p in model.named_parameters()])
    size = moved.abs().max() if algorithm == "value" else moved.norm()
    assert float(size) == pytest.approx(clip, rel=1e-3)


def test_loss_and_gradient_norm_are_logged_before_clipping(tmp_path):
    seed_everything(0)
    model = Classifier(9, 5, 1)
    data = Data([batch(8, "last", seed) for seed in range(4)])
    training = trainer(tmp_path, gradient_clip_val=1e-6, log_every_n_steps=1)
    training.fit(model, data)
    assert {"train/batch_loss", "train/gradient_norm", "train/loss", "train/accuracy"} <= set(
        training.logged_metrics | training.callback_metrics
    )
    assert training.callback_metrics["train/gradient_norm"] > 1e-3


def test_a_batch_without_a_scored_step_adds_nothing(tmp_path):
    model = Classifier(9, 5, 1, readout="every")
    x, _, labels, *_ = batch(2, "every", 0)
    empty = Batch(x, torch.tensor([0, 0]), labels)
    (found,) = trainer(tmp_path).test(model, Data([batch(2, "every", 1), empty]), verbose=False)
    (alone,) = trainer(tmp_path).test(model, Data([batch(2, "every", 1)]), verbose=False)
    assert found == alone


def test_cosine_schedule():
    factors = [cosine(step, 1000) for step in range(1000)]
    assert 0 < factors[0] < 0.05
    assert max(factors) == pytest.approx(1, abs=0.02)
    assert factors.index(max(factors)) in range(45, 55)
    assert factors[-1] < 1e-4
    assert factors == sorted(factors[:50]) + sorted(factors[50:], reverse=True)


@pytest.mark.bad_input
def test_refuses_bad_settings():
    with pytest.raises(ValueError, match="learning_rate is 0; it must be above 0"):
        Classifier(9, 5, learning_rate=0)
    with pytest.raises(ValueError, match="members is 2; it must divide hidden_size, 5, evenly"):
        Classifier(9, 5, members=2)
    with pytest.raises(ValueError, match=r"hidden_size is 8; .* it must be at least 4 a member: 16"):
        Classifier(9, 8, members=4, init="integrator")
    with pytest.raises(ValueError, match="members is 2; with start_from it must be 1"):
        Classifier(9, 6, members=2, start_from="a run")
    with pytest.raises(ValueError, match="optimizer is 'lion'; it must be adam, adamw or sgd"):
        Classifier(9, 5, optimizer="lion")
    with pytest.raises(ValueError, match="schedule is 'step'; it must be constant or cosine"):
        Classifier(9, 5, schedule="step")


@pytest.mark.parametrize(
    "settings", [{"optimizer": "sgd"}, {"optimizer": "adam"}, {"optimizer": "adamw", "weight_decay": 2.0}]
)
def test_a_members_step_is_that_of_an_rnn_of_its_own(tmp_path, settings):
    seed_everything(0)
    settings = {"learning_rate": 0.1, "bidirectional": True, "num_layers": 2} | settings
    alone = [Classifier(9, 3, 1, **settings) for _ in range(2)]
    together = Classifier(9, 6, 1, members=2, **settings)
    together.rnn.load_state_dict(joined([model.rnn for model in alone]).state_dict())
    before = {name: tensor.clone() for name, tensor in together.rnn.state_dict().items()}
    whole = batch(8, "last", 0)
    parts = [Batch(*(tensor[k::2] for tensor in whole[:3])) for k in range(2)]
    for model, part in zip((*alone, together), (*parts, whole), strict=True):
        trainer(tmp_path).fit(model, Data([part]))
    expected = joined([model.rnn for model in alone]).state_dict()
    for name, parameter in together.rnn.state_dict().items():
        step, wanted = parameter - before[name], expected[name] - before[name]
        if name == "by" and settings["optimizer"] != "sgd":  # Adam's step is not the mean of its steps
            continue
        assert wanted.any()
        torch.testing.assert_close(step, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()), msg=name)


def test_the_trainer_clips_each_member(tmp_path):
    seed_everything(0)
    model = Classifier(9, 6, 1, members=2, optimizer="sgd", learning_rate=1.0)
    before = {name: tensor.clone() for name, tensor in model.rnn.state_dict().items()}
    trainer(tmp_path, gradient_clip_val=1e-3).fit(model, Data([batch(8, "last", 0)]))
    steps = {name: tensor - before[name] for name, tensor in model.rnn.state_dict().items()}
    for units in (slice(0, 3), slice(3, 6)):  # a member's readout is 2 Why
        own = [steps["Wxh"][units], steps["Whh"][units], steps["bh"][units], 2 * steps["Why"][:, units]]
        assert torch.nn.utils.get_total_norm(own).item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("readout", ["mean", "last"])
def test_evidence_adds_its_weight_times_the_disagreement_to_the_loss(tmp_path, members, readout):
    seed_everything(0)
    settings = {"members": members, "bidirectional": True, "readout": readout, "init": "integrator"}
    model = Classifier(9, 8, 1, evidence=0.5, **settings)
    whole = batch(8, "last", 0)
    said = torch.randn(8, 6, 2, 1, generator=torch.Generator().manual_seed(1))
    trainer(tmp_path, max_steps=1).fit(model, Data([whole._replace(evidence=said)]))
    x, lengths, labels, *_ = whole
    without, *sums = model._passes(x, lengths, labels, None)
    loss, *sums_with = model._passes(x, lengths, labels, None, said)
    apart_logged = sums_with.pop(2)
    torch.testing.assert_close(sums_with, sums)
    outputs, rows = [], rows_of_members(members)
    member_logits(model.rnn, rows, x, lengths, outputs)
    apart = sum(
        disagreement(own, said[part], lengths[part]).sum() for own, part in zip(outputs, rows, strict=True)
    )
    torch.testing.assert_close(apart_logged, apart.detach())
    torch.testing.assert_close(loss, without + 0.5 * apart / 8)
    loss.backward()
    assert all(parameter.grad.any() for parameter in model.rnn.parameters())


def test_the_mean_disagreement_of_an_epoch_is_logged(tmp_path):
    seed_everything(0)
    model = Classifier(9, 6, 1, readout="mean", evidence=0.5, learning_rate=1e-12)
    g = torch.Generator().manual_seed(1)
    batches = [batch(n, "last", n)._replace(evidence=torch.randn(n, 6, 2, 1, generator=g)) for n in (8, 3)]
    found = trainer(tmp_path)
    found.fit(model, Data(batches))
    apart = 0.0
    for x, lengths, _, *_, said in batches:
        outputs = []
        member_logits(model.rnn, rows_of_members(1), x, lengths, outputs)
        apart += disagreement(outputs[0], said, lengths).sum().item()
    assert found.callback_metrics["train/disagreement"].item() == pytest.approx(apart / 11)


def test_members_are_trained_apart_and_scored_as_one(tmp_path):
    seed_everything(0)
    model = Classifier(9, 6, 1, members=2, learning_rate=0.1)
    apart = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)) == 0
    before = model.rnn.Whh.clone()
    batches = [batch(8, "last", seed) for seed in range(4)]
    training = trainer(tmp_path)
    training.fit(model, Data(batches))
    assert (before[apart] == 0).all()
    assert torch.equal(model.rnn.Whh[apart], before[apart])
    assert not torch.isclose(model.rnn.Whh, before)[~apart].any()
    x, lengths, labels, *_ = batches[0]
    model.train()
    of_members = member_logits(model.rnn, rows_of_members(2), x, lengths)
    own = [cross_entropy(y, labels[k::2]) for k, y in enumerate(of_members)]
    loss, *_ = model._passes(x, lengths, labels, None)
    torch.testing.assert_close(loss, torch.cat(own).mean())
    (found,) = training.test(model, Data([batches[0]]), verbose=False)
    assert found["test/loss"] == pytest.approx(cross_entropy(model.rnn(x, lengths), labels).mean().item())
