"""Making a function's operators visible: tracers, the dispatcher, aliasing, and the two recorders."""
