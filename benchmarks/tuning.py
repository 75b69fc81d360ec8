"""How fast does each method learn at its best? Settings are searched, then tested on fresh seeds.

python benchmarks/tuning.py --stage search --task short --jobs 2
python benchmarks/tuning.py --stage test --task short --seeds 10 --jobs 2
python benchmarks/tuning.py --stage frontier --task short --seeds 5 --jobs 2
python benchmarks/tuning.py --stage ablation --task short --jobs 2

The tasks are ABC-RLHF-v0 with completions of 8 to 16 tokens (``short``), 40 to 60 (``medium``) and
140 to 160 (``long``), and ABC-RLHF-Planted-v0 (``planted``).

**Criterion**, decided before the first run: the mean score over all iterations, the area under the
curve. Where the KL to the reference policy, a trailing mean over 5 iterations, is above a budget,
an iteration counts budget/KL times its score. The budgets are 25, 40, 70 and 25 nats per
completion; for film reviews, that is about where sparse reward ends.

**Search**, by successive halving. On ``short``, every method gets the same twelve points of a Latin
hypercube over learning rate, KL coefficient, minibatch size and two choices of its own, and then
eight recombinations of the best four. All twenty run for 32 iterations (seed 100), the best four
for 80 (seed 101), the best two of these once more (seed 102). On ``medium`` and ``long``, these two
are tried with their learning rate times 1, 1/2, 1/4, 1/8 and 1/16: all ten for 20 iterations (seed
100), and the best two of them for 60 (seeds 101 and 102) and for 50 (seed 101). ``planted`` has a
search of its own, like that on ``short``, with runs of 32 and 50 iterations. Its learning rates are
higher, since its language model is tiny. Here SB3's agents are searched as well, and credit starts
where the suites have it.

**Test**: the setting that won, under seeds from 0 up. Here the policies also write 512 completions
to prompts of their own, which are scored by the reward model, judged by an outside scorer that no
policy was trained on, and measured for variety.

**Frontier**: the same with three coefficients of the KL penalty, the same for all methods, so that
their scores can be compared at equal KL.

**Ablation**: the best setting of prefix-score shaping with one choice changed at a time, under
seeds 100 to 102.

Writes into ``results/tuning/<task>/<stage>`` the rows of every run (``runs.parquet``) and
``meta.json``, and from them ``results/tuning/table.md`` and figures. Runs that are there are not
run again, so a stopped benchmark can be continued. ``--tables-only`` runs nothing, and makes all
tables and figures anew. Everything runs in processes of one thread, in bfloat16 unless ``--dtype``
says otherwise: without fast bfloat16 instructions, float32 takes less time.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import pandas as pd

from harness.halving import halve
from reports import tuning as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing
from training.plan import (
    ABLATED,
    FRONTIER,
    FRONTIER_KL_COEFS,
    METHODS,
    TASKS,
    UNTRAINED,
    with_learning_rates,
)

RESULTS = Path(__file__).parent / "results" / "tuning"
USUAL_DTYPE = "bfloat16"
NUM_SETTINGS = 12
NUM_RECOMBINED = 8
ABLATION_SEEDS = (100, 101, 102)


def search(task: str, methods: list[str], jobs: int, output: Path, dtype: str) -> None:
    rungs, source = TASKS[task].rungs, TASKS[task].settings_from
    search_on = partial(
        halve,
        run_all=partial(_run, task, "search", jobs, output, dtype=dtype),
        value_of=partial(report.value_of, task),
    )
    if source is None:
        from training import study  # on use: tables need neither models nor torch

        tried = {method: study.settings(task, method, NUM_SETTINGS) for method in methods}
        for method, best in search_on(rungs[:1], tried).items():
            tried[method] += study.recombined(best, NUM_RECOMBINED)
    else:
        kept = report.finalists(output, source)
        factors = TASKS[task].learning_rate_factors
        tried = {
            method: [
                changed
                for setting in kept[method]
                for changed in with_learning_rates(setting, factors)
            ]
            for method in methods
        }
    search_on(rungs, tried)


def test(task: str, methods: list[str], seeds: int, jobs: int, output: Path, dtype: str) -> None:
    chosen, iterations = report.chosen(output, task), TASKS[task].iterations
    keys = [(m, chosen[m], iterations, seed) for seed in range(seeds) for m in methods]
    _run(task, "test", jobs, output, [(UNTRAINED, "{}", 0, 0), *keys], dtype)


def frontier(
    task: str, methods: list[str], seeds: int, jobs: int, output: Path, dtype: str
) -> None:
    from training import study

    chosen, iterations = report.chosen(output, task), TASKS[task].iterations
    keys = [
        (method, study.at_kl_coef(chosen[method], kl_coef), iterations, seed)
        for seed in range(seeds)
        for method in methods
        for kl_coef in FRONTIER_KL_COEFS
    ]
    _run(task, "frontier", jobs, output, keys, dtype)


def ablate(task: str, jobs: int, output: Path, dtype: str) -> None:
    from training import study

    settings = study.variants(report.chosen(output, task)[ABLATED])
    iterations = TASKS[task].iterations
    keys = [(v, s, iterations, seed) for seed in ABLATION_SEEDS for v, s in settings.items()]
    _run(task, "ablation", jobs, output, keys, dtype)


def _run(
    task: str,
    stage: str,
    jobs: int,
    output: Path,
    keys: list[tuple[str, str, int, int]],
    dtype: str,
) -> pd.DataFrame:
    from training import study

    return run_missing(
        partial(study.train, task, stage in ("test", "frontier"), dtype),
        keys,
        report.KEYS,
        output / task / stage / "runs.parquet",
        describe(*study.PACKAGES) | study.describe(),
        order="iteration",
        jobs=jobs,
        shared={"dtype": dtype},
        untold={"dtype": USUAL_DTYPE},
        report=partial(report.describe_run, task),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stages = ("search", "test", "frontier", "ablation")
    parser.add_argument("--stage", choices=stages, default="search")
    parser.add_argument("--task", choices=TASKS, default="short")
    parser.add_argument(
        "--method", action="append", choices=METHODS, help="one of them; may be repeated"
    )
    parser.add_argument("--seeds", type=int, default=10, help="of test and frontier, from 0 up")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument(
        "--dtype",
        choices=(USUAL_DTYPE, "float32"),
        default=USUAL_DTYPE,
        help="what policy and reward model compute in; the same for all runs of a folder",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    task, methods = arguments.task, arguments.method or list(TASKS[arguments.task].methods)
    if not set(methods) <= set(TASKS[task].methods):
        parser.error(f"--method: on {task}, there are {'; '.join(TASKS[task].methods)}")
    where = arguments.jobs, arguments.output, arguments.dtype
    if not arguments.tables_only:
        if arguments.stage == "search":
            search(task, methods, *where)
        elif arguments.stage == "frontier":
            methods = arguments.method or list(FRONTIER)
            frontier(task, methods, arguments.seeds, *where)
        elif arguments.stage == "ablation":
            ablate(task, *where)
        else:
            test(task, methods, arguments.seeds, *where)
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
