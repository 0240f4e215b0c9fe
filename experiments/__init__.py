"""One script a result: the paper and its published figure, a Config, and ``main(config)``.

``python -m experiments`` lists them. A script says what it reproduces in a constant ``PUBLISHED``, runs as
``python -m experiments.NAME`` and is called from a notebook as ``main(Config(...))``. What was measured is
recorded with `experiments.ledger`, one file a result, and rendered into RESULTS.md.
"""
