"""Studies: a paper's table as data x pairs x methods x seeds, trained run by run, kept in a ledger and reported."""
