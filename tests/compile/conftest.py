"""Prints a table of the programs that were compiled."""

COLUMN = "compiled program"  # the property of a report that holds a row


def pytest_terminal_summary(terminalreporter):
    reports = [x for kind in ("passed", "failed") for x in terminalreporter.stats.get(kind, [])]
    rows = [row for x in reports for name, row in x.user_properties if name == COLUMN]
    if rows:
        terminalreporter.section("compiled programs")
        terminalreporter.line("| program | chip | GB | temporaries, GB | CPU seconds | same as |")
        for row in sorted(rows):
            terminalreporter.line(f"| {' | '.join(row)} |")
