"""One EM iteration of the Student-t mixture against scikit-learn's Gaussian mixture (40 components, 512 dimensions).

    python benchmarks/bench_mixture.py [--quick] [--rounds 5] [--threads 2]

Ours runs with nu = 4 and nu = inf, scikit-learn has the Gaussian only. Every row is timed in turn, round after round;
compare ratios only. Peak memory is the growth of the resident set over one call (Linux). The oracle rows say how far
ours is from scikit-learn (nu = inf, same start, same number of iterations) and from scipy's multivariate t.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from bench_infonce import peak_mib
from rounds import arguments, measure, write_results
from scipy.stats import multivariate_t
from sklearn.mixture import GaussianMixture
from torch import Tensor

from medvl_cxr_cml.em import Parameters, maximise, observe
from medvl_cxr_cml.mixture import StudentTMixture

K, D, RIDGE = 40, 512, 1e-3
SKLEARN = {"diagonal": "diag", "tied": "tied", "full": "full"}


def rows(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Heavy-tailed rows around K centres, and centres to start from."""
    generator = torch.Generator().manual_seed(seed)
    centres = 0.6 * torch.randn(K, D, generator=generator)
    kind = torch.randint(0, K, (n,), generator=generator)
    scale = (torch.randn(n, 5, generator=generator).square().sum(dim=1, keepdim=True) / 5).rsqrt()
    x = centres[kind] + scale * torch.randn(n, D, generator=generator)
    return x, centres + 0.1 * torch.randn(K, D, generator=generator)


def start(covariance: str, means: Tensor) -> Parameters:
    """Unit covariances at ``means``."""
    eye = torch.eye(D)
    spread = {"diagonal": torch.ones(K, D), "tied": eye, "full": eye.repeat(K, 1, 1)}[covariance]
    return Parameters(torch.full((K,), -math.log(K)), means, spread, spread.clone(), torch.full((K,), 1 / K))


def ours(x: Tensor, covariance: str, means: Tensor, nu: float) -> Callable[[], float]:
    """One iteration: expectation and maximisation; its mean log-likelihood."""
    p, offset = start(covariance, means), torch.zeros(D)

    def iterate() -> float:
        statistics, log_likelihood = observe(x, offset, p, nu, covariance)
        maximise(statistics, p, covariance, RIDGE)
        return log_likelihood.item()

    return iterate


def theirs(x: Tensor, covariance: str, means: Tensor, dtype: type) -> Callable[[], float]:
    """scikit-learn's two steps from the same start."""
    peer = GaussianMixture(K, covariance_type=SKLEARN[covariance], reg_covar=RIDGE)
    peer.weights_, peer.means_ = np.full(K, 1 / K, dtype), means.numpy().astype(dtype)
    peer.covariances_ = start(covariance, means).covariance.numpy().astype(dtype)
    peer.precisions_cholesky_ = peer.covariances_.copy()
    data, begin = x.numpy().astype(dtype), dict(vars(peer))

    def iterate() -> float:
        vars(peer).update(begin)
        log_likelihood, responsibilities = peer._e_step(data)
        peer._m_step(data, responsibilities)
        return float(log_likelihood)

    return iterate


def iteration(covariance: str, n: int, rounds: int) -> list[dict[str, object]]:
    """One table: peak memory first, then the rounds."""
    x, means = rows(n)
    calls = {
        "medvl, nu = 4": ours(x, covariance, means, 4.0),
        "medvl, nu = inf": ours(x, covariance, means, math.inf),
        "scikit-learn f32": theirs(x, covariance, means, np.float32),
    }
    if n <= 10_000:
        calls["scikit-learn f64"] = theirs(x, covariance, means, np.float64)
    peaks = {name: peak_mib(call) for name, call in calls.items()}
    table = measure(f"EM iteration, {covariance}, {n} x {D}, K {K}", calls, rounds, "medvl, nu = 4")
    return [{**row, "peak_mib": f"{peaks[str(row['peer'])]:.0f}", "note": ""} for row in table]


def online(rounds: int) -> list[dict[str, object]]:
    """Stepwise EM on a batch of 32 against scikit-learn's warm refit of one iteration on a queue of 2,048."""
    queue, _ = rows(2048)
    batch, _ = rows(32, seed=1)
    mixture = StudentTMixture(D, K, max_iter=1)
    mixture.fit(queue)
    peer = GaussianMixture(K, covariance_type="diag", reg_covar=RIDGE, max_iter=1, warm_start=True, random_state=0)
    data = queue.numpy()
    calls = {"medvl": lambda: mixture.partial_fit(batch), "scikit-learn, queue 2048": lambda: peer.fit(data)}
    table = measure("online step, diagonal, batch 32", calls, rounds, "medvl")
    return [{**row, "peak_mib": "", "note": ""} for row in table]


def oracles() -> list[dict[str, object]]:
    """Largest differences in fp64 from scikit-learn after ten iterations, and from scipy's density."""
    x = rows(2000)[0][:, :16].double()
    found = []
    for covariance, name in SKLEARN.items():
        mixture = StudentTMixture(16, 8, math.inf, covariance, max_iter=1, tolerance=0.0).double()
        mixture.fit(x)
        spread = mixture.covariance.numpy()
        peer = GaussianMixture(
            8,
            covariance_type=name,
            reg_covar=RIDGE,
            max_iter=10,
            tol=0.0,
            weights_init=mixture.log_weights.exp().numpy(),
            means_init=(mixture.means + mixture.offset).numpy(),
            precisions_init=1 / spread if covariance == "diagonal" else np.linalg.inv(spread),
        ).fit(x.numpy())
        mixture.max_iter = 10
        mixture.fit(x, warm_start=True)
        error = np.abs(mixture.log_prob(x).numpy() - peer.score_samples(x.numpy())).max()
        found.append((f"scikit-learn, {covariance}, 10 iterations", error))
    single = StudentTMixture(16, 1, 4.0, "full").double()
    single.fit(x)
    density = multivariate_t((single.means[0] + single.offset).numpy(), single.covariance[0].numpy(), df=4)
    found.append(("scipy multivariate_t, nu = 4", np.abs(single.log_prob(x).numpy() - density.logpdf(x.numpy())).max()))
    return [
        {"case": "largest difference of log-densities, fp64", "peer": name, "median_s": "", "ratio": "", "peak_mib": "",
         "note": f"{error:.1e}"}
        for name, error in found
    ]  # fmt: skip


def main() -> None:
    """Measure and write the CSV."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--quick", action="store_true", help="small cases")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "Best performing initialization")  # few iterations are meant
    cases = {"diagonal": 230_000, "tied": 10_000, "full": 4_000}
    table = oracles() + online(20 * options.rounds)
    for covariance, n in cases.items():
        table += iteration(covariance, n // 10 if options.quick else n, options.rounds)
    if not options.quick:
        write_results("mixture", table)


if __name__ == "__main__":
    main()
