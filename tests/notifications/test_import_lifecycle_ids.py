import csv
import os
import pty
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from notifications.models import Delivery, LifecycleId
from notifications.tasks import sweep

HERE = Path(__file__).parent
SAMPLE = HERE / "data" / "lifecycle_ids.csv"
REAL = HERE.parents[2] / "shared" / "data" / "lifecycle_ids.csv"
HEADER = "lcid,name,issued_on,expires_on,requester_email,requester_name"
GOOD = "G-1,Good one,,2027-01-19,good@example.org,Good Requester"
MANAGE = [sys.executable, str(HERE.parents[1] / "manage.py"), "import_lifecycle_ids"]

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _in_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*lines: str | bytes, name: str = "in.csv") -> Path:
    path = Path(name)
    encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def run_import(path: Path, *options: str) -> tuple[str, str]:
    """Return the texts on stdout and on stderr."""
    out, err = StringIO(), StringIO()
    call_command("import_lifecycle_ids", str(path), *options, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def refused(path: Path, *options: str) -> tuple[str, list[str]]:
    """Return the last word of an import that must be refused, and the lines before it."""
    err = StringIO()
    with pytest.raises(CommandError) as refusal:
        call_command("import_lifecycle_ids", str(path), *options, stdout=StringIO(), stderr=err)
    assert refusal.value.returncode == 1
    return str(refusal.value), err.getvalue().splitlines()


class TestGoodFiles:
    def test_it_inserts_updates_and_leaves_the_rest(self) -> None:
        assert run_import(SAMPLE) == (
            "4 lines: 4 inserted, 0 updated, 0 unchanged, 0 rejected.\n",
            "",
        )
        before = LifecycleId.objects.get(lcid="A-3")
        assert (before.name, before.requester_name) == ("Archiv für Akten", "Grete Müller")
        assert LifecycleId.objects.get(lcid="A-2").issued_on is None
        assert run_import(SAMPLE)[0] == "4 lines: 0 inserted, 0 updated, 4 unchanged, 0 rejected.\n"

        text = SAMPLE.read_text(encoding="utf-8").replace("2030-05-01", "2031-05-01")
        out, _ = run_import(write(text, "A-5,New,,2027-02-01,ada@example.org,Ada"))
        assert out == "5 lines: 1 inserted, 1 updated, 3 unchanged, 0 rejected.\n"
        assert str(LifecycleId.objects.get(lcid="A-4").expires_on) == "2031-05-01"

    def test_it_leaves_retired_records_retired(self) -> None:
        run_import(SAMPLE)
        LifecycleId.objects.filter(lcid="A-1").update(status="retired", name="Old")
        assert "1 updated" in run_import(SAMPLE)[0]
        record = LifecycleId.objects.get(lcid="A-1")
        assert (record.status, record.name) == ("retired", "Grants portal 4")

    def test_it_takes_columns_in_any_order_and_more_of_them(self) -> None:
        columns = ",".join(reversed(HEADER.split(",")))
        values = ",".join(reversed(GOOD.split(",")))
        run_import(write(f"note,{columns}", f"ignored,{values}"))
        assert LifecycleId.objects.get().name == "Good one"

    def test_it_takes_what_spreadsheets_write(self) -> None:
        run_import(write(f"\ufeff{HEADER}\r", f"{GOOD}\r", "\r", ",,,,,\r"))
        assert LifecycleId.objects.get().requester_name == "Good Requester"

    @pytest.mark.parametrize("delimiter", [";", "\t"])
    def test_it_takes_other_delimiters(self, delimiter: str) -> None:
        run_import(write(*(line.replace(",", delimiter) for line in (HEADER, GOOD))))
        assert LifecycleId.objects.get().requester_name == "Good Requester"

    def test_it_takes_a_requester_whose_domain_is_not_ascii(self) -> None:
        run_import(write(HEADER, "A-9,n,,2027-02-01,max@bücher.example,Max"))
        assert LifecycleId.objects.get().requester_email == "max@bücher.example"

    def test_it_refuses_an_lcid_that_differs_in_case_only(self) -> None:
        run_import(write(HEADER, "A-9,n,,2027-02-01,max@example.org,Max"))
        for lines, what in (
            (["a-9,n,,2027-02-01,max@example.org,Max"], "line 2: lcid: differs in case only from"
             " the record 'A-9': write it so: 'a-9'"),
            (["b-1,n,,2027-02-01,max@example.org,Max", "B-1,n,,2027-02-01,max@example.org,Max"],
             "line 3: lcid: is on line 2 already: 'B-1'"),
        ):  # fmt: skip
            _, problems = refused(write(HEADER, *lines))
            assert problems == [what]
        assert LifecycleId.objects.count() == 1

    def test_it_reads_standard_input(self, service_env: dict[str, str]) -> None:
        done = subprocess.run(
            [*MANAGE, "-"],
            input=write(HEADER).read_bytes(),
            env=service_env,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stdout == b""
        assert b"The file has a header and no line below it. Nothing was imported" in done.stderr

    def test_it_shows_its_progress_on_a_terminal(self, service_env: dict[str, str]) -> None:
        terminal, its_end = pty.openpty()
        termios.tcsetwinsize(its_end, (24, 80))
        done = subprocess.run(
            [*MANAGE, str(write(HEADER, "bad"))],
            env=service_env | {"TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=its_end,
            timeout=60,
        )
        os.close(its_end)
        shown = os.read(terminal, 65536).decode()
        os.close(terminal)
        assert done.returncode == 1
        assert "%|" in shown
        assert "line 2: (whole line)" in shown


class TestBadLines:
    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            (
                "B-1,Bad,,20.11.2026,b@example.org,B",
                "expires_on: is not a date such as 2026-11-20: '20.11.2026'",
            ),
            (
                "B-1,Bad,,2026-02-30,b@example.org,B",
                "expires_on: is not a date such as 2026-11-20: '2026-02-30'",
            ),
            (
                "B-1,Bad,20261120,2026-11-20,b@example.org,B",
                "issued_on: is not a date such as 2026-11-20: '20261120'",
            ),
            ("B-1,Bad,,,b@example.org,B", "expires_on: is empty: ''"),
            (",Bad,,2026-11-20,b@example.org,B", "lcid: is empty: ''"),
            (
                "B-1,Bad,,2026-11-20,b.example.org,B",
                "requester_email: is not a mail address: 'b.example.org'",
            ),
            ("B-1,Bad,,2026-11-20,,B", "requester_email: is empty: ''"),
            (
                "B-1,Bad\x00,,2026-11-20,b@example.org,B",
                r"name: has a control character: 'Bad\x00'",
            ),
            (
                f"{'B' * 101},Bad,,2026-11-20,b@example.org,B",
                f"lcid: has 101 characters, more than 100: '{'B' * 100}'",
            ),
            (
                "G-1,Again,,2026-11-20,b@example.org,B",
                "lcid: is on line 2 already: 'G-1'",
            ),
            (
                "B-1,Bad,,2026-11-20,b@example.org",
                "(whole line): has 5 values where the header names 6 columns: "
                "'B-1,Bad,,2026-11-20,b@example.org'",
            ),
            (
                'B-1,"Ba"d,,2026-11-20,b@example.org,B',
                """(whole line): is not CSV (',' expected after '"'): ''""",
            ),
            (
                'B-1,"Bad,,2026-11-20,b@example.org,B',
                "(whole line): is not CSV (unexpected end of data): ''",
            ),
            (
                "B-1,Caf\xe9,,2026-11-20,b@example.org,B".encode("latin-1"),
                r"name: is not UTF-8: 'Caf\udce9'",
            ),
        ],
    )
    def test_it_names_line_column_and_value(self, line: str | bytes, problem: str) -> None:
        path = write(HEADER, GOOD, line)
        last_word, problems = refused(path)
        assert problems == [f"line 3: {problem}"]
        assert last_word == (
            "1 of 2 lines cannot be imported. Nothing was imported "
            "(--skip-invalid imports the valid lines)."
        )
        assert not LifecycleId.objects.exists()

        out, err = run_import(path, "--skip-invalid")
        assert out == "2 lines: 1 inserted, 0 updated, 0 unchanged, 1 rejected.\n"
        assert err == f"line 3: {problem}\nThe rejected lines are in in.rejects.csv.\n"
        assert LifecycleId.objects.get().name == "Good one"

    def test_it_names_every_problem_and_counts_lines_as_an_editor_does(self) -> None:
        _, problems = refused(
            write(
                HEADER,
                '"B-1","two',
                'lines",,x,y,B',
                GOOD,
                "B-2,Bad,,2026-11-20,z,B",
                GOOD,
                "B-2,Bad,,2026-11-20,b@example.org,B",
            )
        )
        assert problems == [
            r"line 2: name: has a control character: 'two\nlines'",
            "line 2: expires_on: is not a date such as 2026-11-20: 'x'",
            "line 2: requester_email: is not a mail address: 'y'",
            "line 5: requester_email: is not a mail address: 'z'",
            "line 6: lcid: is on line 4 already: 'G-1'",
            "line 7: lcid: is on line 5 already: 'B-2'",
        ]

    def test_mended_rejects_can_be_imported(self) -> None:
        bad: list[str | bytes] = [
            "B-1,Bad,,2026-11-20,b,B",
            "B-2,Caf\xe9,,2026-11-20,b@example.org,B".encode("latin-1"),
            "G-1,Again,,2026-11-20,b@example.org,B",
        ]
        run_import(write(HEADER, GOOD, *bad), "--skip-invalid", "--rejects", "bad.csv")
        content = Path("bad.csv").read_bytes()
        assert b"Caf\xe9" in content
        rows = list(csv.reader(content.decode("latin-1").splitlines()))
        assert rows[0] == ["line", "problem", *HEADER.split(",")]
        assert [row[:3] for row in rows[1:]] == [
            ["3", "requester_email: is not a mail address", "B-1"],
            ["4", "name: is not UTF-8", "B-2"],
            ["5", "lcid: is on line 2 already", "G-1"],
        ]
        Path("bad.csv").write_bytes(content.replace(b",b,B", b",b@b.org,B").replace(b"\xe9", b"e"))
        assert "2 inserted, 1 updated, 0 unchanged" in run_import(Path("bad.csv"))[0]

    def test_a_good_file_leaves_no_rejects(self) -> None:
        run_import(SAMPLE, "--skip-invalid")
        assert list(Path.cwd().iterdir()) == []


class TestBadFiles:
    @pytest.mark.parametrize("options", [[], ["--skip-invalid"]])
    @pytest.mark.parametrize(
        ("lines", "last_word"),
        [
            ([], "The file is empty. Its first line names the columns: lcid, name,"),
            ([""], "The file is empty."),
            ([HEADER], "The file has a header and no line below it."),
            ([HEADER.replace(",expires_on", ""), GOOD], "The first line must name these columns:"),
            ([f"{HEADER},lcid", GOOD], "The first line must name these columns:"),
            ([GOOD], "The first line must name these columns:"),
            (["caf\xe9".encode("latin-1")], "The file is not UTF-8."),
            ([f"{HEADER}\n{GOOD}".encode("utf-16")], "The file is not UTF-8."),
        ],
    )
    def test_it_imports_nothing_of(
        self, lines: list[str | bytes], last_word: str, options: list[str]
    ) -> None:
        assert refused(write(*lines), *options)[0].startswith(last_word)
        assert not LifecycleId.objects.exists()
        assert not Path("in.rejects.csv").exists()

    def test_it_names_the_missing_column(self) -> None:
        header = HEADER.replace("requester_email", "email")
        _, problems = refused(write(header, GOOD))
        assert problems == [f"line 1: requester_email: this column is missing: '{header}'"]

    def test_it_says_that_there_is_no_such_file(self) -> None:
        assert refused(Path("nothing.csv"))[0] == "nothing.csv: No such file or directory."
        assert refused(Path("/"))[0] == "/: Is a directory."

    def test_it_does_not_write_rejects_over_the_file(self) -> None:
        path = write(HEADER, "bad")
        assert "name another one" in refused(path, "--skip-invalid", "--rejects", "in.csv")[0]
        assert refused(path, "--rejects", "x.csv")[0] == "--rejects goes with --skip-invalid."
        assert path.read_text() == f"{HEADER}\nbad\n"


@pytest.mark.skipif(not REAL.exists(), reason=f"the real lifecycle ids are not at {REAL}")
@pytest.mark.usefixtures("sixty_days")
def test_each_real_record_that_expires_within_60_days_has_one_delivery() -> None:
    assert "7228 inserted" in run_import(REAL)[0]
    assert "7228 unchanged" in run_import(REAL)[0]
    assert sweep("2026-11-20") == {"on": "2026-11-20", "due": 92, "to_send": 92, "superseded": 0}
    due = LifecycleId.objects.filter(expires_on__range=("2026-11-20", "2027-01-19"))
    delivered = Delivery.objects.values_list("record__lcid", flat=True)
    assert sorted(delivered) == sorted(due.values_list("lcid", flat=True))
