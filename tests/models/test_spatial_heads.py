"""CSRA, ML-Decoder and Query2Label's decoder: against plain loops over their papers' formulas, and at their limits."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from plbench.api import ModelSpec
from plbench.models.backbones import make_head
from plbench.models.spatial_heads import LabelDecoder, position_encoding, residual_attention
from plbench.randomness import seeded
from plbench.training.dropout import Dropout

NUM_FEATURES, NUM_CLASSES, WIDTH, HEIGHT, BREADTH = 5, 7, 8, 2, 3
PLACES = [(row, column) for row in range(HEIGHT) for column in range(BREADTH)]


@pytest.fixture
def maps() -> Tensor:
    """[B, D, h, w], float64."""
    return torch.randn(3, NUM_FEATURES, HEIGHT, BREADTH, generator=torch.Generator().manual_seed(0)).double()


def csra(weight: float, temperatures: Sequence[float], dropout: float = 0.0) -> nn.Module:
    with seeded(1):
        return residual_attention(
            NUM_FEATURES, NUM_CLASSES, weight=weight, temperatures=temperatures, dropout=dropout
        ).double()


def decoder(is_query2label: bool, num_queries: int = NUM_CLASSES, num_layers: int = 2) -> LabelDecoder:
    with seeded(2):
        made = LabelDecoder(
            NUM_FEATURES,
            NUM_CLASSES,
            width=WIDTH,
            num_queries=num_queries,
            num_layers=num_layers,
            num_heads=2,
            dropout=0.3,
            is_query2label=is_query2label,
        ).double()
        for parameter in made.parameters():  # no bias or norm at a value that would hide a mistake
            nn.init.normal_(parameter, std=0.4)
    return made.eval()


class TestResidualAttention:
    @pytest.mark.parametrize("temperatures", [(1.0,), (math.inf,), (1.0, 2.0, 4.0, math.inf)])
    def test_it_is_the_papers_sum_over_places(self, maps: Tensor, temperatures: tuple[float, ...]) -> None:
        head, weight = csra(0.3, temperatures), 0.3
        logits = head(maps).detach()
        classifiers = head[2].weight.detach().unflatten(0, (len(temperatures), NUM_CLASSES))
        for image in range(len(maps)):
            for column in range(NUM_CLASSES):
                total = 0.0
                for temperature, classifier in zip(temperatures, classifiers, strict=True):
                    m = classifier[column]
                    x = [maps[image, :, row, place] for row, place in PLACES]
                    g = sum(x) / len(x)
                    if math.isinf(temperature):
                        best = max(range(len(x)), key=lambda k: float(x[k] @ m))
                        a = x[best]
                    else:
                        powers = [math.exp(temperature * float(one @ m)) for one in x]
                        a = sum(power / sum(powers) * one for power, one in zip(powers, x, strict=True))
                    total += float(m @ (g + weight * a))
                assert float(logits[image, column]) == pytest.approx(total, abs=1e-12)

    def test_without_attention_it_is_a_linear_head_on_mean_pooled_features(self, maps: Tensor) -> None:
        head = csra(0.0, (1.0,))
        expected = nn.functional.linear(maps.mean(dim=(2, 3)), head[2].weight)
        torch.testing.assert_close(head(maps), expected)

    def test_and_trains_as_that_one_does_with_dropout(self, maps: Tensor) -> None:
        head = csra(0.0, (1.0,), dropout=0.5)
        linear = nn.Sequential(nn.Dropout(0.5), nn.Linear(NUM_FEATURES, NUM_CLASSES, bias=False)).double()
        linear[1].weight.data.copy_(head[2].weight)
        found = []
        for model, inputs in ((head, maps), (linear, maps.mean(dim=(2, 3)))):
            dropout = Dropout(0, model)
            with dropout.installed(), dropout.drawing(step=4, first_row=2, num_rows=len(maps)):
                found.append(model(inputs))
        torch.testing.assert_close(*found)
        assert not torch.allclose(found[0], head.eval()(maps))

    def test_a_high_temperature_takes_the_largest_score_and_a_low_one_the_mean(self, maps: Tensor) -> None:
        torch.testing.assert_close(csra(0.7, (1e6,))(maps), csra(0.7, (math.inf,))(maps))
        torch.testing.assert_close(csra(0.7, (1e-9,))(maps), 1.7 * csra(0.0, (1.0,))(maps))

    def test_on_one_place_it_is_linear_whatever_the_temperature(self, maps: Tensor) -> None:
        one = maps[:, :, :1, :1]
        expected = 1.5 * nn.functional.linear(one.flatten(1), csra(0.5, (3.0,))[2].weight)
        torch.testing.assert_close(csra(0.5, (3.0,))(one), expected)


def attention(layer: nn.MultiheadAttention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one image's queries [Q, W] to keys and values [P, W]: query by query, head by head."""
    to_query, to_key, to_value = layer.in_proj_weight.chunk(3)
    q_bias, k_bias, v_bias = layer.in_proj_bias.chunk(3)
    size = WIDTH // layer.num_heads
    rows = []
    for query in queries:
        parts = []
        for number in range(layer.num_heads):
            own = slice(number * size, (number + 1) * size)
            q = to_query[own] @ query + q_bias[own]
            k = [to_key[own] @ key + k_bias[own] for key in keys]
            powers = [math.exp(float(q @ one) / math.sqrt(size)) for one in k]
            told = [to_value[own] @ value + v_bias[own] for value in values]
            parts.append(sum(power / sum(powers) * one for power, one in zip(powers, told, strict=True)))
        rows.append(layer.out_proj.weight @ torch.cat(parts) + layer.out_proj.bias)
    return torch.stack(rows)


def normalised(layer: nn.LayerNorm, rows: Tensor) -> Tensor:
    made = []
    for row in rows:
        centred = row - sum(row) / WIDTH
        made.append(layer.weight * centred / torch.sqrt(sum(centred**2) / WIDTH + 1e-5) + layer.bias)
    return torch.stack(made)


def plain_decoder(head: LabelDecoder, image: Tensor) -> Tensor:
    """Logits [C] of one map [D, h, w]."""
    values = [head.project.weight @ image[:, row, column] + head.project.bias for row, column in PLACES]
    keys = values
    if head.is_query2label:
        keys = []
        for value, place in zip(values, PLACES, strict=True):
            halves = [
                (math.sin, math.cos)[channel % 2](
                    (number + 1) / length * 2 * math.pi / 10_000 ** (2 * (channel // 2) / (WIDTH // 2))
                )
                for number, length in zip(place, (HEIGHT, BREADTH), strict=True)
                for channel in range(WIDTH // 2)
            ]
            keys.append(value + torch.tensor(halves, dtype=torch.float64))
    else:
        keys = values = [value.clamp(min=0) for value in values]
    queries = head.queries
    for layer in head.layers:
        norms = list(layer.norms)
        if head.is_query2label:
            queries = normalised(norms.pop(0), queries + attention(layer.itself, queries, queries, queries))
        told = attention(layer.places, queries, torch.stack(keys), torch.stack(values))
        queries = normalised(norms.pop(0), queries + told)
        first, last = layer.network[0], layer.network[3]
        hidden = torch.stack([(first.weight @ query + first.bias).clamp(min=0) for query in queries])
        queries = normalised(norms.pop(0), queries + torch.stack([last.weight @ h + last.bias for h in hidden]))
    share = math.ceil(NUM_CLASSES / len(queries))
    logits = []
    for column in range(NUM_CLASSES):
        query, place = divmod(column, share)
        logits.append(queries[query] @ head.weight[query, :, place] + head.bias[column])
    return torch.stack(logits)


class TestDecoders:
    @pytest.mark.parametrize(("is_query2label", "num_queries"), [(True, 7), (False, 7), (False, 3), (False, 1)])
    def test_it_is_the_papers_formula(self, maps: Tensor, is_query2label: bool, num_queries: int) -> None:
        head = decoder(is_query2label, num_queries)
        with torch.no_grad():
            expected = torch.stack([plain_decoder(head, image) for image in maps])
            # position encodings are float32
            torch.testing.assert_close(head(maps), expected, rtol=1e-5 if is_query2label else 1e-9, atol=1e-6)

    @pytest.mark.parametrize("is_query2label", [True, False])
    def test_only_query2label_sees_where_a_place_is(self, maps: Tensor, is_query2label: bool) -> None:
        head, turned = decoder(is_query2label), maps.flip(2, 3)
        same = torch.allclose(head(maps), head(turned), atol=1e-6)
        assert same is not is_query2label

    def test_ml_decoders_queries_do_not_learn_and_are_kept(self) -> None:
        learnt = {name for name, _ in decoder(False).named_parameters()}
        assert "queries" not in learnt
        assert "queries" in decoder(False).state_dict()
        assert "queries" in {name for name, _ in decoder(True).named_parameters()}

    def test_more_groups_than_classes_are_one_a_class(self, maps: Tensor) -> None:
        torch.testing.assert_close(decoder(False, 100)(maps), decoder(False, NUM_CLASSES)(maps))

    @pytest.mark.parametrize("is_query2label", [True, False])
    def test_a_batch_in_pieces_is_masked_as_in_one(self, maps: Tensor, is_query2label: bool) -> None:
        head = decoder(is_query2label).train()
        dropout = Dropout(0, head)
        with dropout.installed():
            with dropout.drawing(0, 0, 3):
                whole = head(maps)
            parts = []
            for rows in (slice(0, 1), slice(1, 3)):
                with dropout.drawing(0, rows.start, rows.stop - rows.start):
                    parts.append(head(maps[rows]))
        torch.testing.assert_close(torch.cat(parts), whole)
        assert not torch.allclose(whole, head.eval()(maps))

    def test_positions_differ_at_every_place_and_fill_odd_widths(self) -> None:
        encoded = position_encoding(3, 4, 9)
        assert encoded.shape == (12, 9)
        assert len(encoded.unique(dim=0)) == 12
        assert (encoded[:, 8] == 0).all()


@pytest.mark.parametrize("name", ["csra", "ml-decoder", "query2label"])
def test_permuting_classes_permutes_logits(maps: Tensor, name: str) -> None:
    order = torch.randperm(NUM_CLASSES, generator=torch.Generator().manual_seed(5))
    if name == "csra":
        head, other = csra(0.4, (1.0, 2.0)), csra(0.4, (1.0, 2.0))
        rows = torch.cat([order, NUM_CLASSES + order])
        other[2].weight.data = head[2].weight[rows].detach()
    else:
        head, other = decoder(name == "query2label"), decoder(name == "query2label")
        for part in ("queries", "weight", "bias"):
            getattr(other, part).data = getattr(head, part)[order].detach()
    torch.testing.assert_close(other(maps), head(maps)[:, order])


@pytest.mark.parametrize(
    ("head", "changes", "shapes"),
    [
        ("csra", {}, {"2.weight": (7, 20)}),
        ("csra", {"head_temperatures": "1,2,max"}, {"2.weight": (21, 20)}),
        ("ml-decoder", {}, {"queries": (7, 16), "weight": (7, 16, 1), "bias": (7,)}),
        ("ml-decoder", {"head_groups": 2}, {"queries": (2, 16), "weight": (2, 16, 4), "bias": (7,)}),
        ("query2label", {}, {"queries": (7, 16), "layers.1.itself.in_proj_weight": (48, 16)}),
        ("query2label", {"head_layers": 3}, {"layers.2.network.0.weight": (64, 16)}),
    ],
)
def test_a_spec_says_their_size(head: str, changes: dict[str, object], shapes: dict[str, tuple[int, ...]]) -> None:
    spec = ModelSpec(backbone="x", weights="random", image_size=32, pooling="none", head=head, head_width=16, **changes)  # type: ignore[arg-type]
    made = make_head(spec, 20, 7)
    state = made.state_dict()
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert made(torch.zeros(2, 20, 3, 3)).shape == (2, 7)
