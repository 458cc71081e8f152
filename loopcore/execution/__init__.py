"""How a step runs.

`plan` decides it from who listens, `step_handlers` and `runner` hold what a step of one phase needs, and three ways
lead on from `runner.Runner.run`. Take a training step with a host handler of BackwardEnd that writes the gradient:

- **eager** (`Backend.run_body`): the body runs as it is written. ``handle(BackwardEnd())`` calls the handler there and
  then, on arrays that have values.
- **fused** (`program_cache`, `trace`): nobody listens on the host within the step. The first step is traced: every
  array the body can reach is replaced by a placeholder (`trace.BodyTrace`), and what it computes becomes one program.
  Later steps call the program with their inputs (`program_inputs`) and never run the body. Back come parameters and
  optimizer states, the step values that somebody declared to read, and small ones packed in one vector.
- **split**: the same body, cut at the events that the host hears. The trace leaves the body at the first of them
  (`segments.CutReached`) and the program of this segment returns what the step has there. The handler runs on concrete
  values. The next segment is traced by running the body again from its begin: what the host left at the cut
  (`segments.HostChanges`) stands in for what the body had, and the compiler drops what nobody uses any more.

A host handler that declares no writes need not cut where the backend can replay: the program goes on, hands back what
the step had at the event, and the handler hears it afterwards. One that writes all the same makes it a cut from then
on.

A program is kept under all that it depends on besides the values of its inputs (`program_cache.ProgramKey`):
`program_keys` reads Python values of the body and the callbacks, `recompilation` says in the log what changed.
`captured_arrays` lists for `Learner.explain` the arrays that programs keep as they are now.
"""
