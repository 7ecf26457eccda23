"""UCRL2, its restarts and windows, and R-BOCPD-UCRL2 in NumPy, float64, step by step on given uniforms."""

import math

import numpy as np

from tests.oracles import rbocpd


def inner_maximum(u, row, width):
    """max p . u over |p - row|_1 <= width (Jaksch et al. 2010, figure 2), for rows `[n, O]` and widths `[n]`."""
    order = sorted(range(len(u)), key=lambda o: (-u[o], o))
    p = row.copy()
    p[:, order[0]] = np.minimum(1, row[:, order[0]] + width / 2)
    for worst in order[:0:-1]:
        excess = np.maximum(p.sum(1) - 1, 0)
        p[:, worst] = np.maximum(0, p[:, worst] - excess)
    return p @ u


def plan(mean, row, mean_width, row_width, eps, states, actions, iterations):
    """Extended value iteration -> the lowest optimistic action of every state, and sweeps."""
    u, q, sweeps = np.zeros(states), np.zeros((states, actions)), 0
    while sweeps < iterations:
        sweeps += 1
        q = (np.minimum(1, mean + mean_width) + inner_maximum(u, row, row_width)).reshape(states, actions)
        change = q.max(1) - u
        if change.max() - change.min() < eps:
            break
        u = q.max(1) - q.max(1).min()
    tie = 1e3 * np.finfo(float).eps
    return np.argmax(q >= q.max(1, keepdims=True) - tie, axis=1), sweeps


def run(kernels, means, starts, uniforms, algorithm, s, bernoulli=True, window=None, widening=0.0):
    """Plays `len(uniforms)` steps on the segments `kernels`, `means` with the settings `s`.

    Returns:
        dict of per-step arrays `action`, `next`, `reward`, `alarm`, and `plans`, `sweeps`, `overflow`.
    """
    _, O, A, _ = kernels.shape
    detector = rbocpd.Exact if s.forecasters == "exact" else rbocpd.Grid
    use = algorithm == "rbocpd-ucrl2"
    detectors = [detector(O, s.cap, s.eta, s.eta_delta / (O * A)) for _ in range(O * A)] if use else []
    K = s.known_changes
    times = {
        "oracle": set(starts.tolist()),
        "restarted-ucrl2": {math.ceil(i**3 / K**2) for i in range(1, int((len(uniforms) * K * K) ** (1 / 3)) + 2)},
    }.get(algorithm, set())
    counts, sums = np.zeros((O * A, O)), np.zeros(O * A)
    policy, visits, in_episode = np.zeros(O, int), np.zeros(O * A), np.zeros(O * A)
    history, position, since, plans, sweeps = [], 0, 0, 0, 0
    out = {name: [] for name in ("action", "next", "reward", "alarm")}
    new_episode = True
    for t, (u_next, u_reward) in enumerate(uniforms):
        if new_episode:
            tk = t - since + 1
            visits = counts.sum(1)
            n = np.maximum(1, visits)
            dr = s.conf_scale * np.sqrt(7 * np.log(2 * O * A * tk / s.delta) / (2 * n))
            dp = s.conf_scale * np.sqrt(14 * O * np.log(2 * A * tk / s.delta) / n) + widening
            row = np.where(visits[:, None] > 0, counts / n[:, None], 1 / O)
            policy, used = plan(sums / n, row, dr, dp, 1 / np.sqrt(tk), O, A, s.evi_iterations)
            in_episode, plans, sweeps = np.zeros(O * A), plans + 1, sweeps + used
        segment = np.searchsorted(starts, t, side="right") - 1
        action = policy[position]
        pair = position * A + action
        following = min(int((np.cumsum(kernels[segment, position, action]) <= u_next).sum()), O - 1)
        mean = means[segment, position, action]
        reward = float(u_reward < mean) if bernoulli else mean
        counts[pair, following] += 1
        sums[pair] += reward
        in_episode[pair] += 1
        if window is not None:
            history.append((pair, reward, following))
            if len(history) > window:
                old_pair, old_reward, old_next = history.pop(0)
                counts[old_pair, old_next] -= 1
                sums[old_pair] -= old_reward
        alarm = use and detectors[pair].update(following)
        position = following
        tested = pair if s.episode_test == "post" else position * A + policy[position]
        new_episode = in_episode[tested] >= max(1, visits[tested])
        if alarm or t + 1 in times:
            counts[:], sums[:], new_episode = 0, 0, True
            for each in detectors:
                each.clear()
            since = since if alarm else t + 1
        for name, value in zip(out, (action, following, reward, alarm), strict=True):
            out[name].append(value)
    overflow = any(d.overflow for d in detectors)
    return {name: np.array(v) for name, v in out.items()} | {"plans": plans, "sweeps": sweeps, "overflow": overflow}
