"""The systems of the paper's table 3 against plain loops over labels, sequences and images, and their limits."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plbench.api import Batch, Method, PartialLabels, PlbenchError, Progress, Task
from plbench.methods.imcl import asymmetric_tanh, matching_pursuit
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES, NUM_FEATURES = 6, 5, 4
START = Progress(0, 40, 0, 10)


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(name: str, **params: Any) -> Method:
        method = Registry.discover().method(name)
        return method(validate_params(method, params), make_task(NUM_CLASSES))

    return make


@pytest.fixture
def batch() -> Batch:
    """Features, float64; present, absent and unknown labels, and a row with nothing known."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(NUM_ROWS, NUM_FEATURES, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, -1, 0, 0])[torch.randint(4, (NUM_ROWS, NUM_CLASSES), generator=generator)]
    labels[0] = 0
    return Batch(features, labels.to(torch.int8), torch.arange(NUM_ROWS))


def model_of(method: Method, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return method.build(nn.Identity(), lambda: nn.Linear(NUM_FEATURES, NUM_CLASSES)).double()


def mean_loss(method: Method, output: Tensor, batch: Batch) -> float:
    loss = method.loss(output, batch, START)
    return float(loss.total.detach()) / float(loss.weight)


def random(*shape: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


class TestLatentNoise:
    def test_formula(self, build: Callable[..., Method], batch: Batch) -> None:
        output = random(NUM_ROWS, 3, NUM_CLASSES)
        expected = 0.0
        for row, column in itertools.product(range(NUM_ROWS), range(NUM_CLASSES)):
            v, r1, r0 = (sigmoid(float(output[row, head, column])) for head in range(3))
            mentioned = r1 * v + r0 * (1 - v)
            expected -= math.log({1: mentioned, 0: 1 - mentioned, -1: 1 - v}[int(batch.labels[row, column])])
        assert mean_loss(build("latent-noise"), output, batch) == pytest.approx(expected / NUM_ROWS, rel=1e-12)

    def test_where_what_is_there_is_always_mentioned_it_is_ce_negative(
        self, build: Callable[..., Method], batch: Batch
    ) -> None:
        presence = random(NUM_ROWS, NUM_CLASSES)
        sure = torch.full_like(presence, 60.0)
        output = torch.stack([presence, sure, -sure], dim=1)
        expected = mean_loss(build("ce-negative"), presence, batch)
        assert mean_loss(build("latent-noise"), output, batch) == pytest.approx(expected, rel=1e-12)

    def test_where_mention_says_nothing_presence_learns_from_verified_negatives_alone(
        self, build: Callable[..., Method], batch: Batch
    ) -> None:
        output = random(NUM_ROWS, 3, NUM_CLASSES)
        output[:, 1] = output[:, 2]
        output.requires_grad_()
        build("latent-noise").loss(output, batch, START).total.backward()
        gradient = output.grad[:, 0]
        assert gradient[batch.labels != -1].abs().max() < 1e-12
        absent = batch.labels == -1
        torch.testing.assert_close(gradient[absent], torch.sigmoid(output.detach()[:, 0][absent]))

    def test_it_starts_as_the_released_code_and_is_scored_by_presence(
        self, build: Callable[..., Method], batch: Batch
    ) -> None:
        method = build("latent-noise")
        model = model_of(method)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        output = method.forward(model, batch, START)
        q = {(0, 0): -6.58, (1, 1): -6.58, (0, 1): -9.87, (1, 0): -9.87}  # biases of the joint states of y and z
        for z, head in ((1, 1), (0, 2)):
            expected = math.exp(q[1, z]) / (math.exp(q[0, z]) + math.exp(q[1, z]))
            torch.testing.assert_close(
                torch.sigmoid(output[:, head]), torch.full_like(output[:, head], expected), rtol=1e-9, atol=0
            )
        torch.testing.assert_close(output[:, 0], torch.full_like(output[:, 0], -6.58))
        assert torch.equal(method.scores(output), torch.sigmoid(output[:, 0]))

    def test_relevance_learns_at_its_own_rate(self, build: Callable[..., Method]) -> None:
        method = build("latent-noise", relevance_rate=0.2)
        model = model_of(method)
        rates = [
            group.get("lr_scale", 1.0)
            for p in model.parameters()
            for group in method.param_groups(model)
            for q in group["params"]
            if q is p
        ]
        assert rates == [1.0, 1.0, 0.2, 0.2, 0.2, 0.2]  # weight and bias of each head


class Written:
    """The recurrent net in plain numpy, one step and one image at a time."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}

    def next_label(self, features: np.ndarray, before: tuple[int, ...]) -> np.ndarray:
        """Probabilities [C + 1] of the label that follows others."""
        w = self.weights
        hidden, cell = np.zeros(w["lstm.weight_hh_l0"].shape[1]), np.zeros(w["lstm.weight_hh_l0"].shape[1])
        for label in (NUM_CLASSES + 1, *before):
            gates = w["lstm.weight_ih_l0"] @ w["embedding.weight"][label] + w["lstm.weight_hh_l0"] @ hidden
            i, f, g, o = np.split(gates + w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"], 4)
            cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
            hidden = np.tanh(cell) / (1 + np.exp(-o))
        vector = w["of_output.weight"] @ hidden + w["of_image.weight"] @ features
        odds = np.exp(w["embedding.weight"][: NUM_CLASSES + 1] @ vector + w["bias"])
        return odds / odds.sum()


class TestCNNRNN:
    def writer(self, build: Callable[..., Method], **params: Any) -> tuple[Method, nn.Module, Written]:
        method = build("cnn-rnn", embedding=3, hidden=4, dropout=0.0, **params)
        method.order = torch.tensor([2, 0, 4, 1, 3])  # as if these were frequent, in this order
        model = model_of(method)
        return method, model, Written(model)

    def true_sequence(self, labels: Tensor) -> tuple[int, ...]:
        return tuple(c for c in (2, 0, 4, 1, 3) if labels[c] == 1)

    def test_formula(self, build: Callable[..., Method], batch: Batch) -> None:
        method, model, written = self.writer(build)
        expected = 0.0
        for features, labels in zip(batch.inputs.numpy(), batch.labels, strict=True):
            sequence = self.true_sequence(labels)
            for step, label in enumerate((*sequence, NUM_CLASSES)):
                expected -= math.log(written.next_label(features, sequence[:step])[label])
        for mode in (True, False):
            output = method.forward(model.train(mode), batch, START)
            assert mean_loss(method, output, batch) == pytest.approx(expected / NUM_ROWS, rel=1e-9)

    def test_a_part_of_the_rows_is_judged_as_in_the_whole(self, build: Callable[..., Method], batch: Batch) -> None:
        """Even where the longest sequence lies in another part."""
        method, model, _ = self.writer(build)
        output = method.forward(model, batch, START)
        parts = [slice(0, 1), slice(1, 4), slice(4, NUM_ROWS)]
        cut = [Batch(batch.inputs[part], batch.labels[part], batch.index[part]) for part in parts]
        total = sum(method.loss(output[part], of, START).total for part, of in zip(parts, cut, strict=True))
        torch.testing.assert_close(total, method.loss(output, batch, START).total)

    def test_long_sequences_are_cut(self, build: Callable[..., Method], batch: Batch) -> None:
        method, _, _ = self.writer(build, max_labels=2)
        sequence, counts = method.sequences(torch.ones(1, NUM_CLASSES, dtype=torch.int8))
        assert sequence.tolist() == [[2, 0, NUM_CLASSES]]
        assert counts.all()
        sequence, counts = method.sequences(batch.labels[:1])  # nothing known: "no more" at once
        assert (sequence.tolist(), counts.tolist()) == ([[NUM_CLASSES]], [[True]])

    def test_frequent_classes_come_first(self, make_task: Callable[..., Task]) -> None:
        task = make_task(NUM_CLASSES)
        task.positives[:] = [3, 9, 3, 0, 9]
        kind = Registry.discover().method("cnn-rnn")
        assert kind(validate_params(kind, {}), task).order.tolist() == [1, 4, 0, 2, 3]

    @pytest.mark.parametrize("longest", [1, 2, 3])
    def test_a_wide_beam_sees_every_sequence(self, build: Callable[..., Method], batch: Batch, longest: int) -> None:
        method, model, written = self.writer(build, beam=200, max_labels=longest)
        prefixes = [p for n in range(longest) for p in itertools.permutations(range(NUM_CLASSES), n)]
        with torch.inference_mode():
            scores = method.scores(method.forward(model.eval(), batch, START))
        for row, features in enumerate(batch.inputs.numpy()):
            best = np.max([written.next_label(features, prefix) for prefix in prefixes], axis=0)
            np.testing.assert_allclose(scores[row], best[:NUM_CLASSES], rtol=1e-9)

    @pytest.mark.parametrize("width", [1, 2, 3])
    def test_a_narrow_beam_keeps_the_likeliest(self, build: Callable[..., Method], batch: Batch, width: int) -> None:
        method, model, written = self.writer(build, beam=width, max_labels=4)
        with torch.no_grad():
            model.embedding.weight.mul_(3.0)  # surer, so that sequences end at different lengths
        with torch.inference_mode():
            scores = method.scores(method.forward(model.eval(), batch, START))
        for row, features in enumerate(batch.inputs.numpy()):
            np.testing.assert_allclose(scores[row], self.searched(written, features, width), rtol=1e-9)

    def searched(self, written: Written, features: np.ndarray, width: int) -> np.ndarray:
        beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        best = np.zeros(NUM_CLASSES)
        for _ in range(4):
            longer = []
            for total, sequence in beam:
                if NUM_CLASSES in sequence:
                    longer.append((total, sequence))
                    continue
                probability = written.next_label(features, sequence)
                best = np.maximum(best, probability[:NUM_CLASSES])
                free = [label for label in range(NUM_CLASSES + 1) if label not in sequence]
                longer += [(total + math.log(probability[label]), (*sequence, label)) for label in free]
            beam = sorted(longer, reverse=True)[:width]
        return best


class TestIMCL:
    @pytest.mark.parametrize("c", [1.0, 2.0, 5.0])
    def test_asymmetric_tanh(self, c: float) -> None:
        z = torch.tensor([-30.0, -1.0, 0.0, 0.7, 30.0], dtype=torch.float64)
        u = z - math.log(c) / 2
        expected = (u.exp() - (-u).exp() / c) / (u.exp() + (-u).exp())
        torch.testing.assert_close(asymmetric_tanh(z, c), expected)
        assert float(asymmetric_tanh(z, c)[2]) == pytest.approx(0.0, abs=1e-15)
        if c == 1:
            torch.testing.assert_close(asymmetric_tanh(z, c), torch.tanh(z))

    def loss(self, batch: Batch, output: Tensor, lc: float, lf: float, c: float, k: int) -> float:
        """Image by image, in numpy."""
        logits, through, features = (part.detach().numpy() for part in output.split([NUM_CLASSES, NUM_CLASSES, 4], 1))
        known = batch.labels.numpy()
        truth = np.where(known > 0, 1.0, -1 / c)
        u = np.exp(logits - math.log(c) / 2)
        labels = np.where(known == 0, (u - 1 / (c * u)) / (u + 1 / u), truth)
        offered = np.where(known == 0, through, truth)
        total = 0.0
        for row in range(NUM_ROWS):
            total += sum(
                math.log(1 + math.exp(-known[row, column] * logits[row, column]))
                for column in range(NUM_CLASSES)
                if known[row, column] != 0
            )
            y, f = labels[row], features[row]
            residual_y, residual_f = y, f
            support: list[int] = []
            for _ in range(k):
                gains = {}
                for other in range(NUM_ROWS):
                    if other != row and other not in support:
                        product_y = residual_y @ offered[other] / np.linalg.norm(offered[other]) / np.linalg.norm(y)
                        product_f = residual_f @ features[other] / np.linalg.norm(features[other]) / np.linalg.norm(f)
                        sign = np.sign(product_y) * (lc > 0) + np.sign(product_f) * (lf > 0)
                        gains[other] = (lc * product_y**2 + lf * product_f**2) * sign
                best = max(gains, key=lambda other: gains[other])
                if gains[best] <= 0:
                    break
                support.append(best)
                residual_y = y - offered[support].T @ np.linalg.lstsq(offered[support].T, y, rcond=None)[0]
                residual_f = f - features[support].T @ np.linalg.lstsq(features[support].T, f, rcond=None)[0]
            total += lc * residual_y @ residual_y + lf * residual_f @ residual_f / (f @ f)
        return total / NUM_ROWS

    @pytest.mark.parametrize(("lc", "lf"), [(0.3, 0.2), (0.3, 0.0), (0.05, 0.5)])
    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_formula(self, build: Callable[..., Method], batch: Batch, lc: float, lf: float, k: int) -> None:
        for c, seed in ((1.0, 5), (2.0, 6)):
            output = random(NUM_ROWS, 2 * NUM_CLASSES + NUM_FEATURES, seed=seed)
            method = build("imcl", label_weight=lc, feature_weight=lf, num_similar=k, asymmetry=c)
            expected = self.loss(batch, output, lc, lf, c, k)
            assert mean_loss(method, output, batch) == pytest.approx(expected, rel=1e-9)

    def test_without_similarity_it_is_ce_ignore(self, build: Callable[..., Method], batch: Batch) -> None:
        output = random(NUM_ROWS, 2 * NUM_CLASSES + NUM_FEATURES)
        method = build("imcl", label_weight=0.0, feature_weight=0.0)
        expected = mean_loss(build("ce-ignore"), output[:, :NUM_CLASSES], batch)
        assert mean_loss(method, output, batch) == pytest.approx(expected, rel=1e-12)

    def test_the_model_gives_logits_labels_through_the_graph_and_features(
        self, build: Callable[..., Method], batch: Batch
    ) -> None:
        method = build("imcl", asymmetry=1.0)
        model = model_of(method)
        with torch.no_grad():
            model.graph.copy_(random(NUM_CLASSES, NUM_CLASSES))
        logits, through, features = method.forward(model, batch, START).split([NUM_CLASSES, NUM_CLASSES, 4], 1)
        torch.testing.assert_close(logits, model.head(batch.inputs))
        torch.testing.assert_close(through, torch.tanh(logits) @ model.graph)
        assert torch.equal(features, batch.inputs)

    def test_scikit_learn_finds_the_same(self) -> None:
        """Where a target is a sum of three atoms nearly at right angles: all products that matter are positive."""
        from sklearn.linear_model import orthogonal_mp

        rng = np.random.default_rng(4)
        atoms = np.eye(8, 12) + 0.05 * rng.standard_normal((8, 12))
        parts = [rng.choice(np.delete(np.arange(8), row), 3, replace=False) for row in range(8)]
        targets = np.array([rng.uniform(1, 2, 3) @ atoms[part] for part in parts])
        chosen, (found,) = matching_pursuit((torch.tensor(targets),), (torch.tensor(atoms),), (1.0,), 3)
        for row in range(8):
            others = np.delete(np.arange(8), row)
            expected = np.zeros(8)
            unit = atoms[others] / np.linalg.norm(atoms[others], axis=1, keepdims=True)
            coefficients = orthogonal_mp(unit.T, targets[row], n_nonzero_coefs=3)
            expected[others] = coefficients / np.linalg.norm(atoms[others], axis=1)
            got = np.zeros(8)
            np.add.at(got, chosen[row].numpy(), found[row].numpy())
            np.testing.assert_allclose(got, expected, atol=1e-9)

    def test_nobody_is_made_up_from_itself_or_from_an_image_twice(self) -> None:
        vectors = random(4, 9)
        chosen, _ = matching_pursuit((vectors, vectors), (vectors, vectors), (1.0, 1.0), 3)
        for row in range(4):
            assert sorted(chosen[row].tolist()) == [other for other in range(4) if other != row] or any(
                count == 0 for count in chosen[row].tolist()
            )

    def test_identical_images_and_a_single_one_are_no_trouble(self, build: Callable[..., Method]) -> None:
        for rows in (1, 4):
            output = torch.ones(rows, 2 * NUM_CLASSES + NUM_FEATURES, requires_grad=True)
            batch = Batch(output, torch.zeros(rows, NUM_CLASSES, dtype=torch.int8), torch.arange(rows))
            loss = build("imcl").loss(output, batch, START).total
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(output.grad).all()


class Passes:
    """Stands for a model under training: its outputs [P, N, ...] in P passes with dropout, of which the first is plain.

    Streams what the engine's view does: the method's scores, averaged over passes, a few rows at a time.
    """

    def __init__(self, method: Method, labels: PartialLabels, outputs: Tensor) -> None:
        self.method, self.labels, self.outputs = method, labels, outputs

    def predict(
        self, weights: Literal["ema", "raw"] = "ema", *, dropout: bool = False, passes: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert weights == "raw"
        for rows in torch.arange(self.outputs.shape[1]).split(7):
            outputs = self.outputs[: passes if dropout else 1, rows]
            yield rows, torch.stack([self.method.scores(output) for output in outputs]).mean(dim=0)


class TestCurriculum:
    NUM_ROWS = 20

    def labels(self) -> PartialLabels:
        rng = np.random.default_rng(2)
        dense = rng.choice([1, -1, 0, 0, 0], (self.NUM_ROWS, NUM_CLASSES)).astype(np.int8)
        return PartialLabels.from_dense(dense, [str(column) for column in range(NUM_CLASSES)])

    def given(self, method: Method, outputs: Tensor, epoch: int = 9) -> dict[tuple[int, int], float]:
        """Pseudo-labels by cell after an epoch has started."""
        view = Passes(method, self.labels(), outputs)
        method.epoch_start(view, Progress(4 * epoch, 40, epoch, 10))
        return {
            divmod(cell, NUM_CLASSES): value
            for cell, value in zip(method.pseudo.cells.tolist(), method.pseudo.values.tolist(), strict=True)
        }

    def unknown(self) -> list[tuple[int, int]]:
        known = self.labels().rows(np.arange(self.NUM_ROWS))
        return [(int(row), int(column)) for row, column in np.argwhere(known == 0)]

    def last(self, rule: str) -> dict[str, Any]:
        """One stage, at the start of the last of 10 epochs."""
        return {"rule": rule, "warmup": 0.9, "stages": 1}

    @pytest.mark.parametrize("rule", ["score", "positives"])
    @pytest.mark.parametrize("theta", [0.8, 2.5])
    def test_thresholds(self, build: Callable[..., Method], rule: str, theta: float) -> None:
        logits = random(1, self.NUM_ROWS, NUM_CLASSES)
        expected = {}
        for cell in self.unknown():
            z = float(logits[0][cell])
            if z >= theta or (z <= -theta and rule == "score"):
                expected[cell] = math.copysign(1.0, z)
        assert expected
        assert self.given(build("curriculum", **self.last(rule), theta=theta), logits) == expected

    def test_an_ensemble_is_judged_by_its_mean(self, build: Callable[..., Method]) -> None:
        logits = random(1, self.NUM_ROWS, 4, NUM_CLASSES)
        method = build("curriculum", **self.last("ensemble"), theta=1.0, heads=4)
        means = {cell: float(logits[0, cell[0], :, cell[1]].mean()) for cell in self.unknown()}
        expected = {cell: math.copysign(1.0, z) for cell, z in means.items() if abs(z) >= 1.0}
        assert self.given(method, logits) == expected
        torch.testing.assert_close(method.scores(logits[0]), torch.sigmoid(logits[0].mean(dim=1)))

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_a_share_of_the_whole_set(self, build: Callable[..., Method], share: float) -> None:
        logits = random(1, self.NUM_ROWS, NUM_CLASSES)
        ranked = sorted(self.unknown(), key=lambda cell: -abs(float(logits[0][cell])))
        chosen = ranked[: int(share * len(ranked) + 1e-9)]
        expected = {cell: math.copysign(1.0, float(logits[0][cell])) for cell in chosen}
        assert self.given(build("curriculum", **self.last("proportion"), proportion=share), logits) == expected

    def test_uncertainty_is_the_deviation_over_passes(self, build: Callable[..., Method]) -> None:
        method = build("curriculum", **self.last("uncertainty"), max_std=0.2, passes=6)
        logits = random(1, self.NUM_ROWS, NUM_CLASSES) + 0.6 * random(6, self.NUM_ROWS, NUM_CLASSES, seed=8)
        expected = {}
        for row, column in self.unknown():
            p = [sigmoid(float(logits[number, row, column])) for number in range(6)]
            mean = sum(p) / 6
            if math.sqrt(sum((value - mean) ** 2 for value in p) / 6) <= 0.2:
                expected[row, column] = 1.0 if mean >= 0.5 else -1.0
        assert 0 < len(expected) < len(self.unknown())
        assert self.given(method, logits) == expected
        torch.testing.assert_close(method.scores(logits[0]), torch.sigmoid(logits[0]))  # no longer squared

    def test_uncertainty_has_dropout_whatever_the_head(self, build: Callable[..., Method]) -> None:
        model = model_of(build("curriculum", rule="uncertainty", dropout=0.3))
        assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.3]

    def test_stages(self, build: Callable[..., Method]) -> None:
        assert build("curriculum", warmup=0.4, stages=3).first_epochs(10) == [4, 6, 8]
        assert build("curriculum", warmup=0.0, stages=2).first_epochs(5) == [0, 3]
        assert build("curriculum", warmup=0.5, stages=9).first_epochs(4) == [2, 3, 4]  # the 4 never begins
        method = build("curriculum", warmup=0.4, stages=3, theta=1.0)
        first, second = random(1, self.NUM_ROWS, NUM_CLASSES), random(1, self.NUM_ROWS, NUM_CLASSES, seed=9)
        assert not self.given(method, first, epoch=3)
        labelled = self.given(method, first, epoch=4)
        assert self.given(method, second, epoch=5) == labelled  # none begins
        anew = self.given(method, second, epoch=6)
        assert anew == self.given(build("curriculum", **self.last("score"), theta=1.0), second)

    def test_formula(self, build: Callable[..., Method], batch: Batch) -> None:
        method = build("curriculum", warmup=0.9, stages=1)
        logits = random(NUM_ROWS, NUM_CLASSES)
        unknown = [(int(r), int(c)) for r, c in (batch.labels == 0).nonzero()]
        pseudo = {cell: (-1.0) ** number for number, cell in enumerate(unknown[::2])}
        cells = torch.tensor([row * NUM_CLASSES + column for row, column in pseudo])
        method.pseudo.add(cells, torch.tensor(list(pseudo.values())))
        expected = 0.0
        for row in range(NUM_ROWS):
            labels = [pseudo.get((row, c), float(batch.labels[row, c])) for c in range(NUM_CLASSES)]
            share = sum(y != 0 for y in labels) / NUM_CLASSES
            terms = [math.log(1 + math.exp(-y * float(logits[row, c]))) for c, y in enumerate(labels) if y != 0]
            expected += (5.45 - 4.45 * share) / NUM_CLASSES * sum(terms)
        assert mean_loss(method, logits, batch) == pytest.approx(expected / NUM_ROWS, rel=1e-6)  # weights are float32
        masks = method.diagnostics(logits, batch)
        for name, sign in (("pseudo_positive", 1.0), ("pseudo_negative", -1.0)):
            found = {(int(row), int(column)) for row, column in masks[name].nonzero()}
            assert found == {cell for cell, value in pseudo.items() if value == sign}

    def test_without_pseudo_labels_it_is_wce_ignore(self, build: Callable[..., Method], batch: Batch) -> None:
        logits = random(NUM_ROWS, NUM_CLASSES)
        expected = mean_loss(build("wce-ignore"), logits, batch)
        assert mean_loss(build("curriculum"), logits, batch) == expected
        twice = torch.stack([logits, logits], dim=1)
        assert mean_loss(build("curriculum", rule="ensemble", heads=2), twice, batch) == pytest.approx(2 * expected)


@pytest.mark.parametrize("name", ["latent-noise", "cnn-rnn", "curriculum"])
def test_a_share_without_images_has_no_loss(build: Callable[..., Method], name: str) -> None:
    """A process may be left without any of a batch's images."""
    method = build(name)
    model = model_of(method)
    inputs = torch.zeros(0, NUM_FEATURES, dtype=torch.float64)
    batch = Batch(inputs, torch.zeros(0, NUM_CLASSES, dtype=torch.int8), torch.zeros(0, dtype=torch.int64))
    loss = method.loss(method.forward(model, batch, START), batch, START)
    loss.total.backward()
    assert (float(loss.total.detach()), float(loss.weight)) == (0.0, 0.0)


def test_a_graph_that_would_not_fit_is_refused(make_task: Callable[..., Task]) -> None:
    kind = Registry.discover().method("imcl")
    kind(validate_params(kind, {}), make_task(9_600))
    with pytest.raises(PlbenchError, match=r"method 'imcl' keeps a graph of 50,000 x 50,000 classes.* 50 GB.*; use"):
        kind(validate_params(kind, {}), make_task(50_000))
