"""Tools that check what is built: wheels, ABIs, machine code, and the tests of a change."""
