import pytest

from plbench.cli.wording import in_options


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('give `precision="float32"`', "give --precision float32"),
        ("`seeds=5`: at least one", "--seeds 5: at least one"),
        ("see `data_root=DIR` or `allow_duplicates=True`", "see --data-root DIR or --allow-duplicates"),
        ("another place with `out=`", "another place with --out"),
        ("which `options.keep=` names; `options.keep='a b'`", "which -D keep names; -D 'keep=a b'"),
        ("""`options.leave_out='"a, `b`",it\\'s'`, ok""", """-D 'leave_out="a, `b`",it'"'"'s', ok"""),
        ('`params.top_k=5` and `options.split_column="part"`', "-P top_k=5 and -D split_column=part"),
        ("`batch.labels` and `Loss(total, weight)` stay", "`batch.labels` and `Loss(total, weight)` stay"),
    ],
)
def test_settings_become_options_and_nothing_else_changes(said: str, shown: str) -> None:
    assert in_options(said) == shown
