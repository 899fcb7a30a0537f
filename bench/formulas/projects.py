"""Other projects' own functions, taken from a folder of clones or of installed packages.

Only the functions named here are compiled, out of the file that holds them: importing a whole
trainer would ask for its dependencies. Nothing of them is kept in this repository.
"""
import ast
import collections
import contextlib
import glob
import math
import os
import types
import typing

import numpy
import torch
import torch.nn.functional as F

from . import leaf


class Absent(Exception):
    pass


def locate(folder, path):
    """`path` in the folder itself, or in one of its subfolders."""
    for at in [os.path.join(folder, path), *sorted(glob.glob(os.path.join(folder, "*", path)))]:
        if os.path.isfile(at):
            return at
    raise Absent(f"no {path}")


def borrow(folder, path, names=None, **known):
    """Functions, classes and methods ("Class.method") of one file, without their decorators."""
    file = locate(folder, path)
    with open(file, encoding="utf-8") as text:
        tree = ast.parse(text.read(), file)
    found = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
            if isinstance(node, ast.ClassDef):
                for part in node.body:
                    if isinstance(part, ast.FunctionDef):
                        found[f"{node.name}.{part.name}"] = part
    if names is None:
        names = [n for n, node in found.items() if isinstance(node, ast.FunctionDef) and "." not in n]
    missing = [n for n in names if n not in found]
    if missing:
        raise Absent(f"no {', '.join(missing)} in {path}")
    space = {"torch": torch, "nn": torch.nn, "F": F, "np": numpy, "math": math,
             "os": os, "defaultdict": collections.defaultdict, "nullcontext": contextlib.nullcontext,
             **vars(typing), **known}
    body = []
    for n in names:
        node = found[n]
        for part in ast.walk(node):
            if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
                part.decorator_list = []
        body.append(node)
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module(body=future + body, type_ignores=[]), file, "exec"), space)
    return types.SimpleNamespace(**{n.split(".")[-1]: space[n.split(".")[-1]] for n in names})


class Settings(dict):
    """A config with the fields a function reads."""

    __getattr__ = dict.__getitem__


class verl:
    NAME = "verl"

    def __init__(self, folder):
        self.f = borrow(folder, "verl/utils/torch_functional.py",
                        ["masked_sum", "masked_mean", "masked_var", "masked_whiten",
                         "clip_by_value", "logprobs_from_logits_v2", "entropy_from_logits"])
        groups = borrow(folder, "verl/utils/groupwise.py", None)
        self.core = borrow(folder, "verl/trainer/ppo/core_algos.py",
                           ["agg_loss", "compute_policy_loss_vanilla", "compute_value_loss",
                            "compute_gae_advantage_return", "kl_penalty", "kl_penalty_forward",
                            "compute_grpo_vectorized_outcome_advantage"],
                           verl_F=self.f, AlgoConfig=type("AlgoConfig", (), {}), **vars(groups))

    def clipped_surrogate(self, c):
        config = Settings(clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.2,
                          global_batch_info={})

        def run():
            log_prob = leaf(c.log_prob)
            loss = self.core.compute_policy_loss_vanilla(
                c.old_log_prob, log_prob, c.advantage, c.weight, "token-mean", config)[0]
            loss.backward()
            return {"loss": loss, "d_log_prob": log_prob.grad}

        return run

    def clipped_value_loss(self, c):
        def run():
            value = leaf(c.value)
            loss = self.core.compute_value_loss(value, c.returns, c.old_value, c.weight, 0.2)[0]
            loss.backward()
            return {"loss": loss, "d_value": value.grad}

        return run

    def generalized_advantage_estimation(self, c):
        def run():  # its advantages come whitened, so the returns are compared
            _, returns = self.core.compute_gae_advantage_return(c.reward, c.value, c.weight, 0.99,
                                                                0.95)
            return {"returns": returns}

        return run

    def kl_estimate(self, c):
        n = c.weight.sum()

        def run():
            log_prob = leaf(c.log_prob)
            loss = (self.core.kl_penalty(log_prob, c.ref_log_prob, "low_var_kl") * c.weight).sum() / n
            loss.backward()
            return {"loss": loss, "d_log_prob": log_prob.grad}

        return run

    def group_relative_advantage(self, c):
        reward, ones = c.reward[:, None], torch.ones(len(c.reward), 1)
        index = numpy.arange(len(c.reward)) // 8

        def run():
            advantage, _ = self.core.compute_grpo_vectorized_outcome_advantage(reward, ones, index)
            return {"advantage": advantage[:, 0]}

        return run

    def whiten(self, c):
        def run():
            return {"whitened": self.f.masked_whiten(c.value, c.weight)}

        return run

    def token_log_prob(self, c):
        label = c.label.long()

        @torch.no_grad()
        def run():
            return {"log_prob": self.f.logprobs_from_logits_v2(c.logits, label)}

        return run

    def token_log_prob_entropy(self, c):
        label = c.label.long()

        @torch.no_grad()
        def run():
            return {"log_prob": self.f.logprobs_from_logits_v2(c.logits, label),
                    "entropy": self.f.entropy_from_logits(c.logits)}

        return run


class trl:
    NAME = "TRL"

    def __init__(self, folder):
        self.f = borrow(folder, "trl/trainer/utils.py",
                        ["selective_log_softmax", "entropy_from_logits"],
                        is_triton_available=lambda: False)  # the tensors are the CPU's
        try:
            self.ppo = borrow(folder, "trl/experimental/ppo/ppo_trainer.py",
                              ["masked_mean", "masked_var", "masked_whiten"])
        except Absent as why:  # PPO is no part of every release
            print(f"{self.NAME}: whiten absent ({why})")
            self.ppo = None

    def whiten(self, c):
        if self.ppo is None:
            return None

        def run():
            return {"whitened": self.ppo.masked_whiten(c.value, c.weight)}

        return run

    def token_log_prob(self, c):
        label = c.label.long()

        @torch.no_grad()
        def run():
            return {"log_prob": self.f.selective_log_softmax(c.logits, label)}

        return run

    def token_log_prob_entropy(self, c):
        label = c.label.long()

        @torch.no_grad()
        def run():
            return {"log_prob": self.f.selective_log_softmax(c.logits, label),
                    "entropy": self.f.entropy_from_logits(c.logits)}

        return run

    def token_log_prob_forward_backward(self, c):
        label = c.label.long()

        def run():
            logits = leaf(c.logits)
            log_prob = self.f.selective_log_softmax(logits, label)
            entropy = self.f.entropy_from_logits(logits)
            torch.autograd.backward([log_prob, entropy], [c.d_log_prob, c.d_entropy])
            return {"log_prob": log_prob, "entropy": entropy, "d_logits": logits.grad}

        return run


class openrlhf:
    NAME = "OpenRLHF"

    def __init__(self, folder):
        utils = borrow(folder, "openrlhf/models/utils.py", ["masked_mean"])
        self.loss = borrow(folder, "openrlhf/models/loss.py",
                           ["aggregate_loss", "PolicyLoss", "ValueLoss", "PairWiseLoss", "DPOLoss"],
                           masked_mean=utils.masked_mean)
        maker = borrow(folder, "openrlhf/trainer/ppo_utils/experience_maker.py",
                       ["RemoteExperienceMaker.get_advantages_and_returns"])
        self.gae = maker.get_advantages_and_returns

    def clipped_surrogate(self, c):
        policy_loss = self.loss.PolicyLoss()

        def run():
            log_prob = leaf(c.log_prob)
            loss = policy_loss(log_prob, c.old_log_prob, c.advantage, c.weight)[0]
            loss.backward()
            return {"loss": loss, "d_log_prob": log_prob.grad}

        return run

    def clipped_value_loss(self, c):
        value_loss = self.loss.ValueLoss(clip_eps=0.2)

        def run():
            value = leaf(c.value)
            loss = value_loss(value, c.old_value, c.returns, c.weight)
            loss.backward()
            return {"loss": loss, "d_value": value.grad}

        return run

    def generalized_advantage_estimation(self, c):
        if c.variant == "mask":
            return None  # it gives a hole the value 0 and goes on: another estimate

        @torch.no_grad()
        def run():
            advantage, returns = self.gae(None, c.value, c.reward, c.weight, 0.99, 0.95)
            return {"advantage": advantage, "returns": returns}

        return run

    def bradley_terry(self, c):
        pair_loss = self.loss.PairWiseLoss()

        def run():
            chosen, rejected = leaf(c.chosen_reward), leaf(c.rejected_reward)
            loss = pair_loss(chosen, rejected)
            loss.backward()
            return {"loss": loss, "d_chosen_reward": chosen.grad,
                    "d_rejected_reward": rejected.grad}

        return run

    def dpo(self, c):
        dpo_loss = self.loss.DPOLoss(beta=0.1)

        def run():
            chosen, rejected = leaf(c.chosen_log_prob), leaf(c.rejected_log_prob)
            loss = dpo_loss(chosen, rejected, c.ref_chosen_log_prob, c.ref_rejected_log_prob)[0]
            loss.backward()
            return {"loss": loss, "d_chosen_log_prob": chosen.grad,
                    "d_rejected_log_prob": rejected.grad}

        return run


class torchtune:
    NAME = "torchtune"

    def __init__(self, folder):
        self.rewards = borrow(folder, "torchtune/rlhf/rewards.py",
                              ["masked_mean", "masked_var", "whiten", "estimate_advantages"])

    def generalized_advantage_estimation(self, c):
        if c.variant == "mask":
            return None  # its scan knows no mask

        @torch.no_grad()
        def run():  # its advantages come whitened, so the returns are compared
            _, returns = self.rewards.estimate_advantages(c.value, c.reward, 0.99, 0.95)
            return {"returns": returns}

        return run

    def whiten(self, c):
        mask = c.weight.bool()

        @torch.no_grad()
        def run():  # its flag adds the mean back where it is set
            return {"whitened": self.rewards.whiten(c.value, mask=mask, shift_mean=False)}

        return run


class torchrl:
    NAME = "torchrl"

    def __init__(self, folder):
        self.value = borrow(folder, "torchrl/objectives/value/functional.py",
                            ["generalized_advantage_estimate"])

    def generalized_advantage_estimation(self, c):
        if c.variant == "mask":
            return None  # it knows no mask
        value, reward = c.value[:, :, None], c.reward[:, :, None]
        following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
        done = torch.zeros_like(value, dtype=torch.bool)
        done[:, -1] = True

        @torch.no_grad()
        def run():
            advantage, returns = self.value.generalized_advantage_estimate(
                0.99, 0.95, value, following, reward, done)
            return {"advantage": advantage[:, :, 0], "returns": returns[:, :, 0]}

        return run


PROJECTS = (verl, trl, openrlhf, torchtune, torchrl)
