"""What every backend promises, as tests: one body for all of them, and nothing in it asks which one runs.

Run it with ``python -m pytest --pyargs loopcore.testing.conformance --backend NAME``. What differs between frameworks
stands in the module ``testing`` of each adapter; `subject.NativeModels` says what it holds. Expected values come from
`oracle`, which is plain NumPy without loopcore, or from the NumPy backend in float64.

Modules are named after what an adapter does: a table in ``docs/write-a-backend.md`` leads from each method of the
protocol to those that test it. ``test_compiled*`` test compiled steps, ``test_loop_*`` and ``test_callbacks_*`` the
whole loop.
"""
