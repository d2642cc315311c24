"""The field's reference points against their formulas in plain Python, one label after another, and their limits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from plbench.api import Batch, Method, Progress, Task
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES = 6, 5
NUM_CELLS = NUM_ROWS * NUM_CLASSES
FIRST_EPOCH = Progress(0, 40, 0, 10)
SINGLE_POSITIVE = ["wan", "epr", "role", "ll-r", "ll-ct", "ll-cp", "hill", "splc", "em-apl", "gr-loss", "boostlu"]
STACKABLE = ["bce-mean-known", "wan", "focal", "hill", "splc", "gr-loss"]
Term = Callable[[float], float]


def at_epoch(epoch: int) -> Progress:
    """The first step of an epoch, counted from 0, of 10."""
    return Progress(4 * epoch, 40, epoch, 10)


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(name: str, **params: Any) -> Method:
        method = Registry.discover().method(name)
        return method(validate_params(method, params), make_task(NUM_CLASSES))

    return make


@pytest.fixture
def batch() -> Batch:
    """Inputs that serve as logits, float64; present, absent and unknown labels, and a row with nothing known."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, -1, 0, 0])[torch.randint(4, logits.shape, generator=generator)]
    labels[0] = 0
    return Batch(logits, labels.to(torch.int8), torch.arange(NUM_ROWS))


def mean_loss(method: Method, batch: Batch, progress: Progress = FIRST_EPOCH) -> float:
    """What the engine makes of the batch, whose inputs serve as its logits: total over weight."""
    loss = method.loss(batch.inputs, batch, progress)
    return float(loss.total.detach()) / float(loss.weight)


def cells(batch: Batch) -> list[tuple[int, int, float, int]]:
    """Row, class, logit and label of every cell."""
    return [
        (row, column, float(batch.inputs[row, column]), int(batch.labels[row, column]))
        for row in range(NUM_ROWS)
        for column in range(NUM_CLASSES)
    ]


def per_image(batch: Batch, present: Term, absent: Term, unknown: Term) -> float:
    """Mean over images of the sum over classes of a term of the logit for each kind of label."""
    return sum({1: present, -1: absent, 0: unknown}[y](z) for _, _, z, y in cells(batch)) / NUM_ROWS


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def as_present(z: float) -> float:
    return -math.log(sigmoid(z))


def as_absent(z: float) -> float:
    return -math.log(1 - sigmoid(z))


def entropy(z: float) -> float:
    p = sigmoid(z)
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def gradient_of_one_label(method: Method, z: float, label: int, progress: Progress = FIRST_EPOCH) -> float:
    """Derivative of the loss of a single label by its logit."""
    logits = torch.tensor([[z]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[label]], dtype=torch.int8)
    (gradient,) = torch.autograd.grad(
        method.loss(logits, Batch(logits, labels, torch.zeros(1)), progress).total, logits
    )
    return float(gradient)


class TestBCEMeanKnown:
    def test_it_is_the_mean_over_the_known_labels_of_the_batch(
        self, build: Callable[..., Method], batch: Batch
    ) -> None:
        terms = [{1: as_present, -1: as_absent}[y](z) for _, _, z, y in cells(batch) if y != 0]
        assert 0 < len(terms) < NUM_CELLS
        assert mean_loss(build("bce-mean-known"), batch) == pytest.approx(sum(terms) / len(terms), rel=1e-12)

    def test_a_batch_without_known_labels_has_no_weight(self, build: Callable[..., Method], batch: Batch) -> None:
        nothing = Batch(batch.inputs, torch.zeros_like(batch.labels), batch.index)
        loss = build("bce-mean-known").loss(batch.inputs, nothing, FIRST_EPOCH)
        assert float(loss.weight) == 0
        assert float(loss.total) == 0


class TestWAN:
    def test_formula(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = per_image(batch, as_present, as_absent, lambda z: as_absent(z) / (NUM_CLASSES - 1))
        assert mean_loss(build("wan"), batch) == pytest.approx(expected, rel=1e-12)

    def test_one_positive_weighs_as_much_as_all_unknown_labels(self, build: Callable[..., Method]) -> None:
        """At p = 1/2 the gradients of an image with one positive sum to 0; under CE, Negative they do not."""
        logits = torch.zeros(1, NUM_CLASSES, dtype=torch.float64, requires_grad=True)
        labels = torch.tensor([[1, 0, 0, 0, 0]], dtype=torch.int8)
        batch = Batch(logits, labels, torch.zeros(1))
        for name, total in {"wan": 0.0, "ce-negative": 0.5 * (NUM_CLASSES - 2)}.items():
            (gradient,) = torch.autograd.grad(build(name).loss(logits, batch, FIRST_EPOCH).total, logits)
            assert float(gradient.sum()) == pytest.approx(total, abs=1e-12)


class TestEPR:
    def penalty(self, batch: Batch, k: float) -> float:
        predicted = sum(sigmoid(z) for _, _, z, _ in cells(batch)) / NUM_ROWS
        return ((predicted - k) / NUM_CLASSES) ** 2

    def test_formula_times_the_number_of_classes(self, build: Callable[..., Method], batch: Batch) -> None:
        first = per_image(batch, as_present, as_absent, lambda z: 0.0) / NUM_CLASSES
        expected = NUM_CLASSES * (first + self.penalty(batch, 1.5))
        assert mean_loss(build("epr", num_positives=1.5), batch) == pytest.approx(expected, rel=1e-12)

    def test_the_expected_number_of_positives_costs_nothing(self, build: Callable[..., Method], batch: Batch) -> None:
        k = sum(sigmoid(z) for _, _, z, _ in cells(batch)) / NUM_ROWS
        expected = per_image(batch, as_present, as_absent, lambda z: 0.0)
        assert mean_loss(build("epr", num_positives=k), batch) == pytest.approx(expected, rel=1e-12)
        assert mean_loss(build("epr", num_positives=k + 1), batch) > expected

    def test_it_pulls_the_number_of_positives_to_k(self, build: Callable[..., Method]) -> None:
        method = build("epr", num_positives=2.0)
        logits = torch.zeros(NUM_ROWS, NUM_CLASSES, dtype=torch.float64)
        batch = Batch(logits, torch.zeros_like(logits, dtype=torch.int8), torch.arange(NUM_ROWS))
        for _ in range(100):
            logits.requires_grad_()
            (gradient,) = torch.autograd.grad(method.loss(logits, batch, FIRST_EPOCH).total, logits)
            logits = logits.detach() - 3.0 * gradient
        assert float(torch.sigmoid(logits).sum(dim=-1).mean()) == pytest.approx(2.0, abs=1e-3)


class TestFocal:
    @pytest.mark.parametrize("gamma", [0.5, 2.0, 3.0])
    def test_formula(self, build: Callable[..., Method], batch: Batch, gamma: float) -> None:
        def negative(z: float) -> float:
            return sigmoid(z) ** gamma * as_absent(z)

        expected = per_image(batch, lambda z: (1 - sigmoid(z)) ** gamma * as_present(z), negative, negative)
        assert mean_loss(build("focal", gamma=gamma), batch) == pytest.approx(expected, rel=1e-9)

    def test_gamma_0_is_ce_negative(self, build: Callable[..., Method], batch: Batch) -> None:
        assert mean_loss(build("focal", gamma=0.0), batch) == mean_loss(build("ce-negative"), batch)

    @pytest.mark.parametrize("z", [-2.0, 0.3, 1.7])
    def test_gradient_of_lin_et_al(self, build: Callable[..., Method], z: float) -> None:
        """Appendix B of the paper: dFL/dx = y (1 - p_t)^gamma (gamma p_t log p_t + p_t - 1)."""
        for y in (1, -1):
            p_t = sigmoid(y * z)
            expected = y * (1 - p_t) ** 2 * (2 * p_t * math.log(p_t) + p_t - 1)
            assert gradient_of_one_label(build("focal"), z, y) == pytest.approx(expected, rel=1e-9)


class TestHill:
    def test_formula(self, build: Callable[..., Method], batch: Batch) -> None:
        def positive(z: float) -> float:
            return (1 - sigmoid(z - 0.7)) ** 3 * as_present(z - 0.7)

        def negative(z: float) -> float:
            return (1.8 - sigmoid(z)) * sigmoid(z) ** 2

        expected = per_image(batch, positive, negative, negative)
        method = build("hill", hill_lambda=1.8, margin=0.7, gamma=3.0)
        assert mean_loss(method, batch) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("label", [0, -1])
    def test_the_gradient_of_negatives_is_a_hill(self, build: Callable[..., Method], label: int) -> None:
        """dL/dz = 3 p^2 (1 - p)^2 at lambda = 1.5: highest at p = 1/2, and gone where a label is surely present."""
        for z in (-3.0, 0.0, 0.5, 3.0):
            p = sigmoid(z)
            expected = 3 * p**2 * (1 - p) ** 2
            assert gradient_of_one_label(build("hill"), z, label) == pytest.approx(expected, rel=1e-9)
        assert gradient_of_one_label(build("hill"), 40.0, label) == pytest.approx(0.0, abs=1e-12)

    def test_without_margin_positives_are_focal(self, build: Callable[..., Method], batch: Batch) -> None:
        positives = Batch(batch.inputs, torch.ones_like(batch.labels), batch.index)
        assert mean_loss(build("hill", margin=0.0), positives) == pytest.approx(
            mean_loss(build("focal"), positives), rel=1e-12
        )


class TestSPLC:
    def formula(self, batch: Batch, tau: float, margin: float, gamma: float, *, started: bool, on_all: bool) -> float:
        def positive(z: float, shift: float = margin) -> float:
            return (1 - sigmoid(z - shift)) ** gamma * as_present(z - shift)

        def negative(z: float) -> float:
            return sigmoid(z) ** gamma * as_absent(z)

        def unknown(z: float) -> float:
            if started and sigmoid(z) > tau:
                return positive(z, margin if on_all else 0.0)
            return negative(z)

        return per_image(batch, positive, negative, unknown)

    @pytest.mark.parametrize("epoch", [0, 1, 5])
    @pytest.mark.parametrize("variant", ["margin", "margin-on-known"])
    def test_formula(self, build: Callable[..., Method], batch: Batch, variant: str, epoch: int) -> None:
        started, on_all = epoch >= 1, variant == "margin"
        expected = self.formula(batch, 0.6, 1.0, 2.0, started=started, on_all=on_all)
        assert mean_loss(build("splc", variant=variant), batch, at_epoch(epoch)) == pytest.approx(expected, rel=1e-9)
        expected = self.formula(batch, 0.7, 0.5, 3.0, started=started, on_all=on_all)
        method = build("splc", variant=variant, tau=0.7, margin=0.5, gamma=3.0)
        assert mean_loss(method, batch, at_epoch(epoch)) == pytest.approx(expected, rel=1e-9)

    def test_the_batch_tells_the_variants_apart(self, batch: Batch) -> None:
        assert any(y == 0 and sigmoid(z) > 0.7 for _, _, z, y in cells(batch))
        assert any(y == -1 and sigmoid(z) > 0.7 for _, _, z, y in cells(batch))  # which stay negative

    def test_a_tau_of_1_without_margin_is_focal(self, build: Callable[..., Method], batch: Batch) -> None:
        method = build("splc", tau=1.0, margin=0.0)
        assert mean_loss(method, batch, at_epoch(3)) == mean_loss(build("focal"), batch)

    def test_what_it_corrects_is_what_it_reports(self, build: Callable[..., Method], batch: Batch) -> None:
        mask = build("splc").diagnostics(batch.inputs, batch)["pseudo_positive"]
        assert mask.tolist() == [
            [y == 0 and sigmoid(z) > 0.6 for r, _, z, y in cells(batch) if r == row] for row in range(NUM_ROWS)
        ]


class TestGRLoss:
    @pytest.mark.parametrize("epoch", [0, 3, 9])
    def test_formula(self, build: Callable[..., Method], batch: Batch, epoch: int) -> None:
        done = epoch / 10
        w, mu, sigma = 0.5 + done * (3 - 0.5), 0.4 + done * (0.9 - 0.4), 1.5 + done * (0.3 - 1.5)

        def unknown(z: float) -> float:
            p = sigmoid(z)
            k = sigmoid(w * p - 1)
            v = math.exp(-((p - mu) ** 2) / (2 * sigma**2))
            return v * (k * (1 - p**0.2) / 0.2 + (1 - k) * (1 - (1 - p) ** 0.7) / 0.7)

        method = build(
            "gr-loss",
            w_start=0.5, w_end=3.0, b=-1.0, mu_start=0.4, mu_end=0.9, sigma_start=1.5, sigma_end=0.3, q2=0.2, q3=0.7,
        )  # fmt: skip
        expected = per_image(batch, as_present, as_absent, unknown)
        assert mean_loss(method, batch, at_epoch(epoch)) == pytest.approx(expected, rel=1e-9)

    def constant(self, build: Callable[..., Method], **params: float) -> Method:
        """w = 0, so that k is the same for every p; a Gaussian so wide that every weight is 1."""
        return build("gr-loss", w_start=0.0, w_end=0.0, sigma_start=1e9, sigma_end=1e9, **params)

    def test_surely_absent_and_q3_of_1_is_p(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = per_image(batch, as_present, as_absent, sigmoid)
        assert mean_loss(self.constant(build, b=-50.0, q3=1.0), batch) == pytest.approx(expected, rel=1e-9)

    def test_small_exponents_are_soft_cross_entropy(self, build: Callable[..., Method], batch: Batch) -> None:
        k = sigmoid(-1.0)
        expected = per_image(batch, as_present, as_absent, lambda z: k * as_present(z) + (1 - k) * as_absent(z))
        method = self.constant(build, b=-1.0, q2=1e-7, q3=1e-7)
        assert mean_loss(method, batch) == pytest.approx(expected, rel=1e-5)

    def test_pseudo_label_and_weight_carry_no_gradient(self, build: Callable[..., Method]) -> None:
        z, done = 0.8, 0.5
        p = sigmoid(z)
        k, v = sigmoid(2 * done * p - 2), math.exp(-((p - 0.65) ** 2) / (2 * 1.25**2))
        expected = v * (-k * p**0.01 * (1 - p) + (1 - k) * p * (1 - p))  # q2 = 0.01, q3 = 1
        assert gradient_of_one_label(build("gr-loss"), z, 0, at_epoch(5)) == pytest.approx(expected, rel=1e-9)


class TestEMAPL:
    def test_formula_before_there_are_pseudo_labels(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = per_image(batch, as_present, as_absent, lambda z: -0.3 * entropy(z))
        assert mean_loss(build("em-apl", alpha=0.3), batch) == pytest.approx(expected, rel=1e-9)

    def test_formula_with_pseudo_labels(self, build: Callable[..., Method], batch: Batch) -> None:
        method = build("em-apl", alpha=0.3, beta=0.6)
        unknown = [(row, column) for row, column, _, y in cells(batch) if y == 0]
        targets = {cell: 0.05 * number for number, cell in enumerate(unknown[::2])}
        keys = torch.tensor([row * NUM_CLASSES + column for row, column in targets])
        method.pseudo.add(keys, torch.tensor(list(targets.values())))
        expected = 0.0
        for row, column, z, y in cells(batch):
            if (row, column) in targets:
                target = targets[row, column]
                expected += 0.6 * (target * as_present(z) + (1 - target) * as_absent(z))
            else:
                expected += {1: as_present(z), -1: as_absent(z), 0: -0.3 * entropy(z)}[y]
        assert mean_loss(method, batch) == pytest.approx(expected / NUM_ROWS, rel=1e-6)  # its targets are float32
        expected_mask = [[(row, column) in targets for column in range(NUM_CLASSES)] for row in range(NUM_ROWS)]
        assert method.diagnostics(batch.inputs, batch)["pseudo_negative"].tolist() == expected_mask

    def test_alpha_0_and_no_pseudo_labels_leave_what_is_known(self, build: Callable[..., Method], batch: Batch) -> None:
        assert mean_loss(build("em-apl", alpha=0.0), batch) == mean_loss(build("ce-ignore"), batch)

    def test_gradient_of_unknown_labels(self, build: Callable[..., Method], batch: Batch) -> None:
        """Of -alpha H: alpha z p (1 - p), which pushes p towards 1/2 from either side."""
        logits = batch.inputs.clone().requires_grad_()
        unknown = Batch(logits, torch.zeros_like(batch.labels), batch.index)
        build("em-apl").loss(logits, unknown, FIRST_EPOCH).total.backward()
        for row, column, z, _ in cells(batch):
            expected = 0.1 * z * sigmoid(z) * (1 - sigmoid(z))
            assert float(logits.grad[row, column]) == pytest.approx(expected, rel=1e-9)


class TestLargeLoss:
    """LL-R, LL-Ct and LL-Cp within one step; what LL-Cp remembers is tested elsewhere."""

    def largest(self, batch: Batch, number: int) -> set[tuple[int, int]]:
        unknown = [(as_absent(z), row, column) for row, column, z, y in cells(batch) if y == 0]
        return {(row, column) for _, row, column in sorted(unknown, reverse=True)[:number]}

    def expected(self, batch: Batch, number: int, replacement: Term) -> float:
        chosen = self.largest(batch, number)
        loss = 0.0
        for row, column, z, y in cells(batch):
            term = replacement if (row, column) in chosen else as_absent
            loss += as_present(z) if y == 1 else as_absent(z) if y == -1 else term(z)
        return loss / NUM_ROWS

    def number(self, batch: Batch, percent: float, share_of: str) -> int:
        unknown = sum(y == 0 for _, _, _, y in cells(batch))
        return math.ceil(percent / 100 * (unknown if share_of == "unknown" else NUM_CELLS) - 1e-9)

    @pytest.mark.parametrize("share_of", ["unknown", "all"])
    @pytest.mark.parametrize("epoch", [1, 2, 4])
    def test_formulas(self, build: Callable[..., Method], batch: Batch, share_of: str, epoch: int) -> None:
        growing = self.number(batch, 8.0 * epoch, share_of)
        constant = self.number(batch, 8.0, share_of)
        assert 1 <= constant <= growing
        for name, number, replacement in (
            ("ll-r", growing, lambda z: 0.0),
            ("ll-ct", growing, as_present),
            ("ll-cp", constant, as_present),
        ):
            method = build(name, delta_percent=8.0, share_of=share_of)
            expected = self.expected(batch, number, replacement)
            assert mean_loss(method, batch, at_epoch(epoch)) == pytest.approx(expected, rel=1e-9), name

    def test_shares_of_unknown_and_of_all_labels_differ(self, batch: Batch) -> None:
        assert self.number(batch, 32.0, "unknown") < self.number(batch, 32.0, "all")

    @pytest.mark.parametrize("name", ["ll-r", "ll-ct", "ll-cp"])
    def test_nothing_happens_in_the_first_epoch_or_with_delta_0(
        self, build: Callable[..., Method], batch: Batch, name: str
    ) -> None:
        assumed_negative = mean_loss(build("ce-negative"), batch)
        assert mean_loss(build(name, delta_percent=50.0), batch) == assumed_negative
        assert mean_loss(build(name, delta_percent=0.0), batch, at_epoch(9)) == assumed_negative

    def test_all_unknown_labels_rejected_is_ce_ignore(self, build: Callable[..., Method], batch: Batch) -> None:
        method = build("ll-r", delta_percent=50.0)
        for epoch in (2, 9):  # 100 %, and beyond
            assert mean_loss(method, batch, at_epoch(epoch)) == mean_loss(build("ce-ignore"), batch)

    def test_of_equal_losses_the_first_are_taken(self, build: Callable[..., Method]) -> None:
        logits = torch.zeros(2, NUM_CLASSES, dtype=torch.float64)
        largest = build("ll-r", delta_percent=30.0).largest(logits, torch.zeros_like(logits, dtype=torch.int8), 1)
        assert largest.tolist() == [[True] * 3 + [False] * 2, [False] * 5]

    @pytest.mark.parametrize(("regime", "rates"), [("probe", [1.0]), ("finetune", [1.0, 10.0])])
    def test_the_head_learns_faster_beside_a_backbone(
        self, make_task: Callable[..., Task], regime: str, rates: list[float]
    ) -> None:
        task = make_task(NUM_CLASSES)
        object.__setattr__(task, "regime", regime)
        kind = Registry.discover().method("ll-r")
        method = kind(validate_params(kind, {}), task)
        model = method.build(nn.Linear(3, 4), lambda: nn.Linear(4, NUM_CLASSES))
        groups = method.param_groups(model)
        assert [group.get("lr_scale", 1.0) for group in groups] == rates
        assert [p for group in groups for p in group["params"]] == list(model.parameters())
        assert groups[-1]["params"][-2:] == list(model[1].parameters())


class TestROLE:
    def test_formula_times_the_number_of_classes(self, build: Callable[..., Method], batch: Batch) -> None:
        method = build("role", num_positives=1.5)
        estimates = method.table.detach().view(-1, NUM_CLASSES)[batch.index].tolist()

        def half(logits: list[list[float]], targets: list[list[float]]) -> float:
            first, predicted = 0.0, 0.0
            for row, column, _, y in cells(batch):
                z, target = logits[row][column], sigmoid(targets[row][column])
                first += target * as_present(z) + (1 - target) * as_absent(z)
                first += as_present(z) if y == 1 else as_absent(z) if y == -1 else 0.0
                predicted += sigmoid(z)
            penalty = ((predicted / NUM_ROWS - 1.5) / NUM_CLASSES) ** 2
            return first / NUM_CLASSES / NUM_ROWS + penalty

        logits = batch.inputs.tolist()
        expected = NUM_CLASSES * (half(logits, estimates) + half(estimates, logits)) / 2
        assert mean_loss(method, batch) == pytest.approx(expected, rel=1e-6)  # its table is float32

    def test_each_half_trains_one_side_alone(self, build: Callable[..., Method], batch: Batch) -> None:
        """dL/dz of an unknown label: (p - y) / 2 and the penalty's share, with the other side as a constant."""
        method = build("role", num_positives=1.5)
        nothing = torch.zeros_like(batch.labels)
        logits = batch.inputs.clone().requires_grad_()
        method.loss(logits, Batch(logits, nothing, batch.index), FIRST_EPOCH).total.backward()
        table_gradient = method.table.grad.view(-1, NUM_CLASSES)
        p, y = batch.inputs.sigmoid(), method.table.detach().view(-1, NUM_CLASSES)[batch.index].sigmoid()
        for own, other, gradient in ((p, y, logits.grad), (y, p, table_gradient[batch.index])):
            distance = (own.sum(dim=1).mean() - 1.5) / NUM_CLASSES
            expected = (own - other) / 2 + distance * own * (1 - own)
            torch.testing.assert_close(gradient.double(), expected.double(), rtol=1e-5, atol=1e-6)
        assert not table_gradient[NUM_ROWS:].any()  # rows of other images


class TestBoostLU:
    def model(self, method: Method, backbone: nn.Module) -> nn.Module:
        return method.build(backbone, lambda: nn.Linear(1, 1))

    class Backbone(nn.Conv2d):
        """A convolution as backbone: images [B, 3, H, W] to a map of 4 channels."""

        def __init__(self) -> None:
            super().__init__(3, 4, kernel_size=3)
            self.num_features = 4

    @pytest.mark.parametrize("alpha", [1.0, 5.0])
    def test_logits_are_means_of_boosted_maps(self, build: Callable[..., Method], alpha: float) -> None:
        model = self.model(build("boostlu", alpha=alpha), self.Backbone())
        images = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = model(images)
            features = model[0](images)
            weight, bias = model[1].convolution.weight[:, :, 0, 0], model[1].convolution.bias
            for image in range(2):
                for column in range(NUM_CLASSES):
                    activations = [
                        float(bias[column] + weight[column] @ features[image, :, i, j])
                        for i in range(4)
                        for j in range(3)
                    ]
                    boosted = [alpha * value if value > 0 else value for value in activations]
                    assert float(logits[image, column]) == pytest.approx(sum(boosted) / 12, abs=1e-5)

    def test_alpha_1_is_a_linear_head_on_pooled_features(self, build: Callable[..., Method]) -> None:
        model = self.model(build("boostlu", alpha=1.0), self.Backbone())
        images = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
        head = model[1].convolution
        expected = nn.functional.linear(model[0](images).mean(dim=(2, 3)), head.weight[:, :, 0, 0], head.bias)
        torch.testing.assert_close(model(images), expected)

    @pytest.mark.parametrize("rule", ["ll-r", "ll-ct", "ll-cp"])
    def test_its_loss_is_that_of_the_rule(self, build: Callable[..., Method], batch: Batch, rule: str) -> None:
        own = build("boostlu", rule=rule, delta_percent=8.0)
        assert mean_loss(own, batch, at_epoch(3)) == mean_loss(build(rule, delta_percent=8.0), batch, at_epoch(3))
        assert own.diagnostics(batch.inputs, batch).keys() == build(rule).diagnostics(batch.inputs, batch).keys()

    def test_without_a_rule_its_loss_is_ce_negative(self, build: Callable[..., Method], batch: Batch) -> None:
        method = build("boostlu", rule="none", delta_percent=50.0)
        assert mean_loss(method, batch, at_epoch(9)) == mean_loss(build("ce-negative"), batch)


class TestAll:
    @pytest.mark.parametrize("name", sorted({*SINGLE_POSITIVE} - {"epr", "role"}))  # whose penalty may pull back
    def test_verified_negatives_are_ordinary_negatives(
        self, build: Callable[..., Method], batch: Batch, name: str
    ) -> None:
        """In the last epoch too, and however sure the model is that they are present: they push p down."""
        labels = torch.full_like(batch.labels, -1)
        logits = batch.inputs.clone().requires_grad_()
        loss = build(name).loss(logits, Batch(logits, labels, batch.index), at_epoch(9))
        (gradient,) = torch.autograd.grad(loss.total, logits)
        assert (gradient > 0).all()

    @pytest.mark.parametrize("name", SINGLE_POSITIVE)
    def test_it_says_that_it_was_written_for_single_positives(self, name: str) -> None:
        method = Registry.discover().method(name)
        assert {"single-positive", "reference"} <= method.tags
        assert "arXiv" in method.paper

    @pytest.mark.parametrize("name", [*STACKABLE, "epr", "ll-r", "ll-ct"])
    @pytest.mark.parametrize("per_head", [False, True])
    def test_heads_stacked_equal_heads_alone(
        self, build: Callable[..., Method], batch: Batch, name: str, per_head: bool
    ) -> None:
        kind, space = type(build(name)), type(build(name)).Params.search_space()
        bounds = [search.bounds(build(name).task) for search in space.values()]
        values = [[low + share * (high - low) for low, high in bounds] for share in (0.0, 0.3, 1.0)]
        members = [build(name, **dict(zip(space, value, strict=True))) for value in values]
        logits = torch.stack([batch.inputs, batch.inputs.flip(0), 0.5 * batch.inputs]).float()
        labels = batch.labels[None]
        if per_head:
            labels = torch.stack([batch.labels, batch.labels.flip(1), batch.labels])
        stacked = kind.stack(members).loss(logits, Batch(logits, labels, batch.index), at_epoch(4))
        assert stacked.total.shape == (3,)
        assert stacked.total.dtype == torch.float32
        weights = torch.as_tensor(stacked.weight).expand(3)
        for head, method in enumerate(members):
            own = labels[head if per_head else 0]
            alone = method.loss(logits[head], Batch(logits[head], own, batch.index), at_epoch(4))
            assert float(stacked.total[head]) == pytest.approx(float(alone.total), rel=1e-6)
            assert float(weights[head]) == float(alone.weight)

    @pytest.mark.parametrize("name", STACKABLE)
    def test_what_can_be_stacked_says_so(self, name: str) -> None:
        assert Registry.discover().method(name).stackable
