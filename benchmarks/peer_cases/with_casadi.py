"""CasADi, on the scalar codes: ``python -m peer_cases.with_casadi PIPE CLOCK CORE``."""

import sys
from multiprocessing.connection import Connection

import casadi
import numpy as np
from scalar_codes.numbers import Number
from scalar_codes.programs import SCALAR_CODES

from peer_cases.serving import serve


def jacobian(function, num_inputs):
    """Return a function of CasADi that gives the Jacobian, and what has room for it, column by column."""
    x = casadi.SX.sym("x", num_inputs)
    y = function(*(Number(casadi, x[i]) for i in range(num_inputs)))
    outputs = casadi.vertcat(*(number.value for number in y))
    derivative = casadi.densify(casadi.jacobian(outputs, x))
    return casadi.Function("jacobian", [x], [derivative]), np.zeros(len(y) * num_inputs)


def main():
    connection = Connection(int(sys.argv[1]))
    workload = connection.recv()
    function = SCALAR_CODES[workload["function"]].func
    point = np.array(workload["args"][0])

    def prepared(function, point):
        compiled, found = jacobian(function, len(point))
        buffer, run = compiled.buffer()
        buffer.set_arg(0, memoryview(point))
        buffer.set_res(0, memoryview(found))

        def call():
            run()
            return found

        call.owner = compiled, buffer  # the trigger keeps neither alive
        return call, lambda result: [result.reshape(len(point), -1).T.copy()]

    def warm_up():
        prepared(lambda x, y: (x * y, x.sin()), np.ones(2))[0]()

    serve(connection, warm_up, lambda: prepared(function, point), sys.argv[2], int(sys.argv[3]))


if __name__ == "__main__":
    main()
