"""Law and Symmetry are one object seen twice."""

import pytest
import torch

from nlcompanion import (
    RePU,
    data_rotation_law,
    flat_loss,
    generator,
    homogeneous_law,
    invariance_defect,
    law_of,
    linear_law,
    mlp,
    rescale,
    rotation,
    scale,
)

X = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4).sin()
Y = torch.arange(5) % 2


def loss_of(activation="relu"):
    return flat_loss(mlp((4, 3, 2), activation, seed=2), X, Y, torch.nn.functional.cross_entropy)


def skew(d: int) -> torch.Tensor:
    A = torch.arange(float(d * d), dtype=torch.float64).view(d, d).cos()
    return A - A.T


LAWS = {
    "stack": (loss_of(), lambda f: homogeneous_law(f, 1), torch.tensor([1.0, -2.0, 0.5])),
    "neuron": (loss_of(), lambda f: homogeneous_law(f, 1)[1], 1.0),
    "power": (loss_of(RePU(2)), lambda f: homogeneous_law(f, 1), 1.0),
    "matrix": (loss_of("linear"), lambda f: linear_law(f, 1), torch.tensor([[1.0, 2, 0], [0, -1, 1], [3, 0, 0.5]])),
}


@pytest.mark.parametrize("case", LAWS)
def test_a_laws_symmetry_is_its_action_and_its_generator(case):
    f, make, direction = LAWS[case]
    law = make(f)
    symmetry = law.symmetry(direction)
    s = torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(symmetry(f.q0, s), law.act(f.q0, 0.3 * torch.as_tensor(direction).double()))
    assert torch.allclose(generator(symmetry)(f.q0), law.generator(f.q0, direction), rtol=1e-13, atol=1e-15)
    assert invariance_defect(f, symmetry, f.q0).abs() < 1e-12
    assert invariance_defect(f, symmetry, f.q0, s).abs() < 1e-12


def test_control_the_symmetry_of_another_activation_is_missed():
    square = homogeneous_law(loss_of(RePU(2)), 1)
    assert invariance_defect(loss_of(), square.symmetry(), loss_of().q0).abs() > 1e-3


def test_the_rotation_behind_rotated_data():
    f = loss_of()
    law = data_rotation_law(f)
    turn = law.symmetry(skew(4))
    assert torch.allclose(generator(turn)(f.q0), law.generator(f.q0, skew(4)), rtol=1e-12, atol=1e-14)
    moved = turn(f.q0, torch.tensor(0.5, dtype=torch.float64))
    assert moved[f.slices["1.weight"]].norm() == pytest.approx(f.q0[f.slices["1.weight"]].norm().item(), rel=1e-13)
    with pytest.raises(ValueError, match="needs a matrix"):
        generator(law.symmetry())(f.q0)


@pytest.mark.parametrize("case", ["stack", "neuron", "power", "matrix"])
def test_there_and_back(case):
    f, make, _ = LAWS[case]
    law = make(f)
    back = law_of(law.symmetry(), f)
    q = f.q0 + 0.3 * f.q0.sin()
    assert back.charge(q).item() == pytest.approx(law.total.charge(q).item(), rel=1e-12)
    assert back.shape == ()


def test_a_symmetry_of_rows_becomes_the_law_of_a_neuron():
    f = loss_of()
    law = homogeneous_law(f, 1)[2]
    back = law_of(law.symmetry(), f)
    assert back.statement == "|1.weight[2, :]|² - |3.weight[:, 2]|² = const"
    assert back.statement == law.statement


def test_what_has_no_such_law():
    f = loss_of()
    first, second = f.slices["1.weight"], f.slices["3.weight"]
    assert law_of(rescale(first, second), f).statement == "|1.weight|² - |3.weight|² = const"
    with pytest.raises(ValueError, match="not invariant under"):
        law_of(rescale(first, second, p=2.0), f)
    with pytest.raises(ValueError, match="not invariant under"):
        law_of(scale(first), f)
    with pytest.raises(ValueError, match="no stretch"):
        law_of(rotation(plane=(0, 1), dimension=len(f)), f)
