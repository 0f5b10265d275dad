"""An explore rule, advantages and a loss of your own, in one file.

See core_hpc/README.md, Extension points.
"""


def mean_distance(distances, quality):
    """Explore rule: the mean distance of a completion to the others of its problem.

    `distances` is an array [n, n] for the n completions of a problem, and `quality` has the exploit
    reward of each. It returns n numbers.
    """
    n = len(quality)
    return [0.0] * n if n < 2 else distances.sum(axis=1) / (n - 1)


def leave_one_out(completions, rewards):
    """Advantages: the reward minus the mean reward of the others (RLOO, arXiv 2402.14740).

    It gets the completions that are compared with each other, and their rewards.
    """
    n, total = len(rewards), sum(rewards)
    return [0.0] * n if n < 2 else [reward - (total - reward) / (n - 1) for reward in rewards]


def clipped(ratio, advantage, log_prob, rescue, *, low=0.2, high=0.3):
    """Loss: the gain of each token, to be maximised. This one is the clip of PPO, in torch.

    All arguments are tensors with one value per token: policy ratio, advantage, log-probability, and
    whether the token is of a rescue. Ratio and log-probability carry the gradient.
    """
    return (ratio * advantage).minimum(ratio.clamp(1 - low, 1 + high) * advantage)
