"""Environments with an exact state, and the formulas of PPO written out."""

import copy
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

from stillroom.errors import Refused
from stillroom.models.policies import ActorCritic, gaze
from stillroom.parts import optim, ppo
from stillroom.run import Run

gymnasium = pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")
pytest.importorskip("minigrid", reason="the extra `rl` is not installed")

LAKE, KEY = "FrozenLake-v1", "minigrid:MiniGrid-DoorKey-5x5-v0"


class Corridor(gymnasium.Env):
    """Five places in a row, reward 1 at the right end; where it starts follows from the seed. Says how often it was reset."""

    observation_space, action_space = gymnasium.spaces.Box(0, 4, (1,)), gymnasium.spaces.Discrete(2, start=5)

    def __init__(self, limit=1000):
        self.limit, self.resets = limit, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time, self.resets = int(self.np_random.integers(3)), 0, self.resets + 1
        return np.array([self.place], np.float32), {}

    def step(self, action):
        assert action in (5, 6)
        self.place, self.time = max(0, self.place + (1 if action == 6 else -1)), self.time + 1
        return np.array([self.place], np.float32), float(self.place == 4), self.place == 4, self.time >= self.limit, {}


class Lucky(Corridor):
    """It asks nobody's seed."""

    luck = np.random.default_rng()

    def step(self, action):
        obs, *rest = super().step(action)
        return (obs + self.luck.random()).astype(np.float32), *rest


def actor(env, seed=0, **named):
    torch.manual_seed(seed)
    return ActorCritic(env.size, env.actions, **named)


# --- environments ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [LAKE, KEY, "CartPole-v1", "Pendulum-v1"])
def test_a_saved_state_goes_on_bit_for_bit_also_from_the_middle_of_episodes(name):
    one = ppo.Envs(name, 3, seed=7)
    policy = actor(one, continuous=not one.discrete)
    torch.manual_seed(1)
    ppo.rollout(policy, one, 47)
    saved = copy.deepcopy(one.state_dict())
    other = ppo.Envs(name, 3, seed=7)
    other.load_state_dict(saved)
    rolls = []
    for env in (one, other):
        torch.manual_seed(2)
        rolls.append(ppo.rollout(policy, env, 60))
    for field in vars(rolls[0]):
        assert torch.equal(getattr(rolls[0], field), getattr(rolls[1], field)), field
    assert one.finished == other.finished and one.returns == other.returns


def test_its_state_is_plain_and_passes_a_checkpoint_without_pickle(tmp_path):
    env = ppo.Envs(LAKE, 2)
    ppo.rollout(actor(env), env, 9)
    torch.save(env.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = ppo.Envs(LAKE, 2)
    again.load_state_dict(state)
    assert torch.equal(again.obs, env.obs) and again.played == env.played and again.episodes == env.episodes


def test_a_run_stopped_anywhere_goes_on_bit_for_bit(tmp_path):
    def play(run, stop=None):
        env = ppo.Envs(KEY, 2, seed=1)
        policy = actor(env)
        opt = optim.adam(policy, lr=1e-2)
        run.keep(policy=policy, env=env, opt=opt)
        for step in run.loop(steps=6):
            if step == stop:
                return None
            roll = ppo.rollout(policy, env, 11)
            gain = ppo.advantage(roll.reward, roll.value[0], roll.done, 0.99)
            for part in ppo.minibatches(2, 2, obs=roll.obs, action=roll.action, logp=roll.logp, gain=gain,
                                        goal=roll.value[:, :-1].movedim(0, -1)):
                run.update(opt, **ppo.losses(policy, part))
        return [*policy.parameters(), env.obs]

    whole = play(Run())
    for stop in (1, 3, 5):
        play(Run(tmp_path / str(stop), save_every=-1.0), stop)
        again = play(Run(tmp_path / str(stop), resume=True))
        assert all(map(torch.equal, whole, again))


def test_an_environment_that_asks_nobodys_seed_is_refused_when_resumed():
    env = ppo.Envs(Lucky, 1)
    env.step(torch.tensor([1]))
    with pytest.raises(Refused, match="do not come back"):
        ppo.Envs(Lucky, 1).load_state_dict(env.state_dict())
    with pytest.raises(Refused, match="1 environments were saved, here are 2"):
        ppo.Envs(Corridor, 2).load_state_dict(ppo.Envs(Corridor, 1).state_dict())


def test_at_the_end_of_an_episode_the_last_sight_is_handed_over_and_the_next_begins():
    env = ppo.Envs(Corridor, 1)
    rewards, ends = [], []
    for _ in range(4):
        after, reward, ended, cut = env.step(torch.tensor([1]))
        rewards.append(reward.item())
        ends.append(ended.item())
        if ended:
            break
    assert after.tolist() == [[4.0]] and rewards[-1] == 1 and sum(rewards) == 1 and ends[-1] and not any(ends[:-1]) and not cut
    assert env.obs.item() <= 2 and env.finished == [1.0] and env.episodes == [1] and env.played == [[]]


def test_episodes_follow_from_the_seed_and_worlds_can_be_one_or_few():
    def starts(**named):
        env = ppo.Envs(KEY, 3, **named)
        found = [env.obs.clone()]
        for i in range(3):
            env.obs[i] = env._reset(i)
        return [tuple(row.tolist()) for obs in (*found, env.obs) for row in obs]

    assert starts(seed=1) == starts(seed=1) != starts(seed=2)
    assert len(set(starts(seed=1, worlds=1))) == 1 and len(set(starts(seed=1, worlds=2))) == 2 < len(set(starts(seed=1)))


def test_names_texts_and_spaces_become_numbers():
    lake = ppo.Envs(LAKE, 2)
    assert lake.size == 16 and (lake.obs.sum(1) == 1).all() and lake.actions == 4 and lake.discrete and len(lake) == 2
    key = ppo.Envs(KEY, 1)                           # direction one-hot and the picture; the mission is a text
    assert key.size == 4 + 7 * 7 * 3
    pendulum = ppo.Envs("Pendulum-v1", 1)
    assert pendulum.size == 3 and pendulum.actions == 1 and not pendulum.discrete
    after, *_ = pendulum.step(torch.tensor([[100.0]]))                   # beyond the bounds: clipped
    again = ppo.Envs("Pendulum-v1", 1)
    assert torch.equal(after, again.step(torch.tensor([[2.0]]))[0])


def test_what_cannot_be_played_is_refused_with_the_remedy(monkeypatch):
    with pytest.raises(Refused, match="pprint_registry"):
        ppo.Envs("NoSuchWorld-v0", 1)
    with pytest.raises(Refused, match="pprint_registry"):
        ppo.Envs("nosuchpackage:World-v0", 1)

    class Many(Corridor):
        action_space = gymnasium.spaces.MultiBinary(3)

    class Text(Corridor):
        observation_space = gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(3))

    with pytest.raises(Refused, match="MultiBinary"):
        ppo.Envs(Many, 1)
    with pytest.raises(Refused, match="wrap the environment"):
        ppo.Envs(Text, 1)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(Refused, match=r"stillroom\[rl\]"):
        ppo.Envs(LAKE, 1)


# --- rollouts --------------------------------------------------------------------------------------------------------

def test_a_rollout_says_what_happened():
    env = ppo.Envs(Corridor, 2, seed=3)
    policy, first = actor(env), env.obs.clone()
    roll = ppo.rollout(policy, env, 40)
    assert roll.obs.shape == roll.next_obs.shape == (40, 2, 1) and roll.value.shape == (2, 41, 2)
    assert torch.equal(roll.obs[0], first)
    on = roll.done[:-1] == 0
    assert torch.equal(roll.obs[1:][on], roll.next_obs[:-1][on])         # within an episode what comes after is what is next
    assert (roll.next_obs[roll.done == 1] == 4).all() and (roll.obs[1:][~on] <= 2).all() and roll.done.any()
    assert torch.equal(roll.reward, (roll.next_obs[..., 0] == 4).float())
    chances, value = policy(roll.obs.flatten(0, 1))
    torch.testing.assert_close(chances.log_prob(roll.action.flatten()).view(40, 2), roll.logp)
    torch.testing.assert_close(value.view(2, 40, 2), roll.value[:, :-1])
    torch.testing.assert_close(policy(env.obs)[1], roll.value[:, -1])
    assert not roll.value.requires_grad and len(env.finished) == int(roll.done.sum())


def test_where_only_time_ran_out_the_rest_is_what_was_expected_there():
    env = ppo.Envs(lambda: Corridor(limit=3), 2, seed=0)
    policy = actor(env)
    roll = ppo.rollout(policy, env, 30)
    cut = (roll.done == 1) & (roll.next_obs[..., 0] != 4)
    assert cut.any() and (roll.rest[:, ~cut] == 0).all()
    torch.testing.assert_close(roll.rest[:, cut], policy(roll.next_obs[cut])[1])


# --- advantages ------------------------------------------------------------------------------------------------------

def test_advantages_are_the_sum_of_equation_16():
    g = torch.Generator().manual_seed(0)
    reward, value = torch.randn(9, 2, generator=g).double(), torch.randn(10, 2, generator=g).double()
    done = (torch.rand(9, 2, generator=g) < 0.3).double()
    found = ppo.advantage(reward, value, done, 0.97, 0.9)
    for e in range(2):
        for t in range(9):
            total, weight = 0.0, 1.0
            for later in range(t, 9):
                delta = reward[later, e] + 0.97 * value[later + 1, e] * (1 - done[later, e]) - value[later, e]
                total += weight * delta
                weight *= 0.97 * 0.9
                if done[later, e]:
                    break
            torch.testing.assert_close(found[t, e], total)


def test_with_full_traces_it_is_the_return_and_with_none_the_surprise_of_one_step():
    reward, value, done = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[0.5], [0.0], [1.0], [8.0]]), torch.zeros(3, 1)
    gain = ppo.advantage(reward, value, done, 0.5, trace=1.0)
    assert abs(gain[0].item() - (1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 8 - 0.5)) < 1e-6
    torch.testing.assert_close(ppo.advantage(reward, value, done, 0.5, 0.0), reward + 0.5 * value[1:] - value[:-1])


def test_the_stream_without_episodes_goes_on_where_the_other_ends():
    reward, value, done = torch.tensor([[0.0], [0.0], [1.0]]), torch.zeros(4, 1), torch.tensor([[0.0], [1.0], [0.0]])
    assert ppo.advantage(reward, value, done, 0.9)[:2].eq(0).all()
    assert ppo.advantage(reward, value, 0 * done, 0.9)[0].item() == pytest.approx((0.9 * 0.95) ** 2)


# --- minibatches and losses ------------------------------------------------------------------------------------------

def test_every_sample_comes_once_an_epoch_with_its_own_fields():
    torch.manual_seed(0)
    number = torch.arange(24).view(6, 4)
    parts = list(ppo.minibatches(3, 4, number=number, square=number**2, wide=number[..., None].expand(6, 4, 5)))
    assert len(parts) == 12
    for epoch in range(3):
        seen = torch.cat([part.number for part in parts[4 * epoch : 4 * epoch + 4]])
        assert sorted(seen.tolist()) == list(range(24))
    assert all(torch.equal(part.square, part.number**2) and part.wide.shape == (6, 5) for part in parts)
    assert parts[0].number.tolist() != parts[4].number.tolist()


def some_part(policy, n=12, shift=0.0):
    g = torch.Generator().manual_seed(0)
    obs, action = torch.randn(n, 3, generator=g), torch.randint(2, (n,), generator=g)
    logp = policy(obs)[0].log_prob(action).detach() + shift * torch.randn(n, generator=g)
    gain, goal = torch.randn(n, generator=g), torch.randn(n, 2, generator=g)
    return SimpleNamespace(obs=obs, action=action, logp=logp, gain=gain, goal=goal)


def test_the_losses_are_those_of_schulman_et_al_2017():
    torch.manual_seed(0)
    policy = ActorCritic(3, 2)
    part = some_part(policy, shift=0.3)
    found = ppo.losses(policy, part, clip=0.1, entropy=0.03, value=0.7)
    chances, expected = policy(part.obs)
    gains = (part.gain.double() - part.gain.double().mean()) / part.gain.double().std()
    surrogate, error, uncertain, clipped = 0.0, 0.0, 0.0, 0
    for i in range(12):
        p = chances.logits[i].detach().double().softmax(0)
        ratio = math.exp(math.log(p[part.action[i]]) - part.logp[i].item())
        inside = min(max(ratio, 0.9), 1.1)
        clipped += inside != ratio
        surrogate += min(ratio * gains[i], inside * gains[i]) / 12
        error += 0.5 * sum((expected[s, i].double() - part.goal[i, s]) ** 2 for s in range(2)) / 12
        uncertain -= sum(q * math.log(q) for q in p.tolist()) / 12
    assert 0 < clipped < 12
    assert found["policy"].item() == pytest.approx(-float(surrogate), rel=1e-4)
    assert found["value"].item() == pytest.approx(0.7 * float(error.detach()), rel=1e-4)
    assert found["entropy"].item() == pytest.approx(-0.03 * uncertain, rel=1e-4)


def test_on_the_policy_that_played_the_gradient_is_that_of_reinforce_and_beyond_the_clip_there_is_none():
    torch.manual_seed(0)
    policy = ActorCritic(3, 2)
    part = some_part(policy)
    gain = (part.gain - part.gain.mean()) / (part.gain.std() + 1e-8)
    weights = list(policy.actor.parameters())
    ours = torch.autograd.grad(ppo.losses(policy, part)["policy"], weights)
    naive = torch.autograd.grad(-(policy(part.obs)[0].log_prob(part.action) * gain).mean(), weights)
    for a, b in zip(ours, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    part.logp = part.logp - 1.0 * gain.sign()                            # every ratio is already beyond, on the side of its gain
    assert all((g == 0).all() for g in torch.autograd.grad(ppo.losses(policy, part)["policy"], weights))


# --- policies --------------------------------------------------------------------------------------------------------

def test_a_fresh_policy_is_near_even_and_its_heads_have_the_right_shapes():
    torch.manual_seed(0)
    obs = torch.randn(7, 5)
    chances, value = ActorCritic(5, 4, streams=3)(obs)
    assert isinstance(chances, Categorical) and value.shape == (3, 7) and (chances.probs - 0.25).abs().max() < 0.02
    assert 0 < value.abs().max() < 0.03                                  # or a stream without reward drowns the others
    chances, value = ActorCritic(5, 4, continuous=True)(obs)
    action = chances.sample()
    assert action.shape == (7, 4) and chances.log_prob(action).shape == (7,) and value.shape == (2, 7)
    naive = -0.5 * ((action - chances.mean).square().sum(1) + 4 * math.log(2 * math.pi))
    torch.testing.assert_close(chances.log_prob(action), naive)


@pytest.mark.parametrize("size", [64, 100, 500])
def test_a_gaze_on_white_observations_has_variance_two(size):
    torch.manual_seed(0)
    assert abs(gaze(size)(torch.randn(2000, size)).square().mean() - 2) < 0.2


def test_ppo_learns_to_walk_to_the_end_of_the_corridor():
    env = ppo.Envs(lambda: Corridor(limit=20), 8)
    policy = actor(env, streams=1)
    opt = optim.adam(policy, lr=3e-3, clip=0.5)
    run = Run()
    run.keep(policy=policy, opt=opt, env=env)
    for _ in run.loop(steps=12):
        roll = ppo.rollout(policy, env, 32)
        gain = ppo.advantage(roll.reward + 0.95 * roll.rest[0], roll.value[0], roll.done, 0.95)
        goal = (roll.value[0, :-1] + gain)[..., None]
        for part in ppo.minibatches(4, 2, obs=roll.obs, action=roll.action, logp=roll.logp, gain=gain, goal=goal):
            run.update(opt, **ppo.losses(policy, part))
    with torch.no_grad():
        chances = policy(torch.arange(4.0)[:, None])[0].probs[:, 1]
    assert (chances > 0.8).all(), chances
