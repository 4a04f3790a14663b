"""What a policy sees of the units, and the scores it gives them."""

import torch

from llmprune.methods.base import Weights
from llmprune.methods.prunenet.policy import ByPolicy, Policy, features
from tests.methods.prunenet.channels import CHANNELS, ROWS, W, X, gram


def test_all_inputs_of_a_unit_get_its_score_and_units_are_ranked_by_the_policy():
    heads = Weights(W, 0, 6, (ROWS[0],))
    policy = Policy(4, seed=1)
    with torch.no_grad():
        policy.linear.weight[:] = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    score = ByPolicy({"attention": policy}, {}).score(heads, gram())
    assert torch.equal(score, score.reshape(6, 4)[:, 0].repeat_interleave(4))
    energy = (X.square().mean(0) * W.square().sum(0)).reshape(6, 4).mean(1)
    assert torch.equal(score.reshape(6, 4)[:, 0].argsort(), energy.argsort())


def test_features_do_not_depend_on_the_scale_of_the_block():
    scaled = Weights(3 * W, 0, 24, tuple(5 * rows for rows in ROWS))
    torch.testing.assert_close(
        features(scaled, gram(2 * X)), features(CHANNELS, gram()), rtol=1e-4, atol=1e-4
    )
