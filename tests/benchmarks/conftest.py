import pytest


@pytest.fixture
def ratio(benchmark, capsys):
    """Compare the benchmarked time with a baseline's in the same run, and say so."""

    def report(name, baseline_seconds):
        # Minimum against minimum: what else the machine does only ever adds.
        factor = baseline_seconds / benchmark.stats.stats.min
        benchmark.extra_info.update(baseline=name, ratio=round(factor, 1))
        with capsys.disabled():
            print(f"\n{benchmark.name}: {factor:,.0f} times as fast as {name}")
        return factor

    return report
