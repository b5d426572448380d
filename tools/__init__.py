"""Tools that check what is built (wheels, ABIs, machine code, the tests of a change), and real data."""
