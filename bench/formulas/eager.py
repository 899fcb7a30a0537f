"""The formulas in PyTorch, written down as one would."""
import torch
import torch.nn.functional as F

from . import leaf

NAME = "torch"


def clipped_surrogate(c):
    n = c.weight.sum()

    def run():
        log_prob = leaf(c.log_prob)
        ratio = torch.exp(log_prob - c.old_log_prob)
        clipped = torch.clamp(ratio, 0.8, 1.2)
        loss = -torch.minimum(ratio * c.advantage, clipped * c.advantage)
        loss = (loss * c.weight).sum() / n
        loss.backward()
        with torch.no_grad():  # what a trainer logs
            log_ratio = log_prob - c.old_log_prob
            ((ratio != clipped) * c.weight).sum() / n
            ((ratio - 1 - log_ratio) * c.weight).sum() / n
        return {"loss": loss, "d_log_prob": log_prob.grad}

    return run


def clipped_value_loss(c):
    n = c.weight.sum()

    def run():
        value = leaf(c.value)
        near = torch.clamp(value, c.old_value - 0.2, c.old_value + 0.2)
        loss = 0.5 * torch.maximum((value - c.returns) ** 2, (near - c.returns) ** 2)
        loss = (loss * c.weight).sum() / n
        loss.backward()
        return {"loss": loss, "d_value": value.grad}

    return run


def generalized_advantage_estimation(c):
    gamma, lam = 0.99, 0.95

    @torch.no_grad()
    def run():
        after = torch.zeros(c.shape[0])  # of the next token that counts
        next_value = torch.zeros(c.shape[0])
        columns = []
        for t in reversed(range(c.shape[1])):
            here = c.weight[:, t]
            delta = c.reward[:, t] + gamma * next_value - c.value[:, t]
            after = torch.where(here > 0, delta + gamma * lam * after, after)
            next_value = torch.where(here > 0, c.value[:, t], next_value)
            columns.append(after)
        advantage = torch.stack(columns[::-1], dim=1) * c.weight
        return {"advantage": advantage, "returns": (advantage + c.value) * c.weight}

    return run


def discounted_returns(c):
    gamma = 0.99

    @torch.no_grad()
    def run():
        after = torch.zeros(c.shape[0])
        columns = []
        for t in reversed(range(c.shape[1])):
            after = torch.where(c.weight[:, t] > 0, c.reward[:, t] + gamma * after, after)
            columns.append(after)
        return {"returns": torch.stack(columns[::-1], dim=1) * c.weight}

    return run


def group_relative_advantage(c):
    @torch.no_grad()
    def run():
        groups = c.reward.view(-1, 8)
        centred = groups - groups.mean(dim=1, keepdim=True)
        return {"advantage": (centred / (groups.std(dim=1, keepdim=True) + 1e-6)).view(-1)}

    return run


def kl_estimate(c):
    n = c.weight.sum()

    def run():
        log_prob = leaf(c.log_prob)
        delta = c.ref_log_prob - log_prob
        loss = ((torch.exp(delta) - 1 - delta) * c.weight).sum() / n
        loss.backward()
        return {"loss": loss, "d_log_prob": log_prob.grad}

    return run


def whiten(c):
    n = c.weight.sum()

    @torch.no_grad()
    def run():
        mean = (c.value * c.weight).sum() / n
        centred = c.value - mean
        variance = (centred**2 * c.weight).sum() / (n - 1)
        return {"whitened": centred * torch.rsqrt(variance + 1e-8) * c.weight}

    return run


def bradley_terry(c):
    def run():
        chosen, rejected = leaf(c.chosen_reward), leaf(c.rejected_reward)
        loss = -F.logsigmoid(chosen - rejected).mean()
        loss.backward()
        return {"loss": loss, "d_chosen_reward": chosen.grad, "d_rejected_reward": rejected.grad}

    return run


def dpo(c):
    def run():
        chosen, rejected = leaf(c.chosen_log_prob), leaf(c.rejected_log_prob)
        z = (chosen - c.ref_chosen_log_prob) - (rejected - c.ref_rejected_log_prob)
        loss = -F.logsigmoid(0.1 * z).mean()
        loss.backward()
        return {"loss": loss, "d_chosen_log_prob": chosen.grad,
                "d_rejected_log_prob": rejected.grad}

    return run


def token_log_prob(c):
    label = c.label.long()[:, None]

    @torch.no_grad()
    def run():
        return {"log_prob": F.log_softmax(c.logits, dim=-1).gather(-1, label)[:, 0]}

    return run


def log_prob_and_entropy(logits, label):
    log_p = F.log_softmax(logits, dim=-1)
    return log_p.gather(-1, label)[:, 0], -(log_p.exp() * log_p).sum(-1)


def token_log_prob_entropy(c):
    label = c.label.long()[:, None]

    @torch.no_grad()
    def run():
        log_prob, entropy = log_prob_and_entropy(c.logits, label)
        return {"log_prob": log_prob, "entropy": entropy}

    return run


def token_log_prob_forward_backward(c):
    label = c.label.long()[:, None]

    def run():
        logits = leaf(c.logits)
        log_prob, entropy = log_prob_and_entropy(logits, label)
        torch.autograd.backward([log_prob, entropy], [c.d_log_prob, c.d_entropy])
        return {"log_prob": log_prob, "entropy": entropy, "d_logits": logits.grad}

    return run


def cross_entropy(c):
    label = c.label.long()

    def run():
        logits = leaf(c.logits)
        loss = F.cross_entropy(logits, label)
        loss.backward()
        return {"loss": loss, "d_logits": logits.grad}

    return run


FORMULAS = {f.__name__: f for f in (
    clipped_surrogate, clipped_value_loss, generalized_advantage_estimation, discounted_returns,
    group_relative_advantage, kl_estimate, whiten, bradley_terry, dpo, token_log_prob,
    token_log_prob_entropy, token_log_prob_forward_backward, cross_entropy)}
