package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode/utf8"
)

// A known failure is a line of the file of known failures: `DEFECT: TABLE / ROW / COLUMN`.
type known map[string]string

func readKnown(path string) (known, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	found := known{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		defect, cell, ok := strings.Cut(line, ": ")
		if !ok {
			return nil, fail("%s: %q is not `DEFECT: TABLE / ROW / COLUMN`", path, line)
		}
		if _, twice := found[cell]; twice {
			return nil, fail("%s: %q is listed twice", path, cell)
		}
		found[cell] = defect
	}
	return found, lines.Err()
}

type table struct {
	name    string
	columns []string
	rows    []string
	cells   map[string]string // by row and column
}

type report struct {
	known    known
	only     string
	verbose  bool
	tables   []*table
	tried    []string
	passed   int
	expected int
	reasons  []string
}

// notApplicable is what a check returns where its column has no such thing.
var notApplicable = fmt.Errorf("not applicable")

// try fills one cell.
func (r *report) try(in, row, column string, check func() error) {
	cell := fmt.Sprintf("%s / %s / %s", in, row, column)
	if !strings.Contains(cell, r.only) {
		return
	}
	err := check()
	mark := "pass"
	defect, isKnown := r.known[cell]
	switch {
	case errors.Is(err, notApplicable):
		mark = "-"
	case err == nil && isKnown:
		mark = "GONE"
		r.reasons = append(r.reasons, fmt.Sprintf("%s\n  passes, but is listed as a known failure (%s): remove the line", cell, defect))
	case err == nil:
		r.passed++
	case isKnown:
		mark = "known"
		r.expected++
		if r.verbose {
			r.reasons = append(r.reasons, fmt.Sprintf("%s\n  known (%s): %v", cell, defect, err))
		}
	default:
		mark = "FAIL"
		r.reasons = append(r.reasons, fmt.Sprintf("%s\n  %v", cell, err))
	}
	r.tried = append(r.tried, cell)
	r.enter(in, row, column, mark)
}

func (r *report) enter(in, row, column, mark string) {
	at := slices.IndexFunc(r.tables, func(t *table) bool { return t.name == in })
	if at < 0 {
		r.tables = append(r.tables, &table{name: in, cells: map[string]string{}})
		at = len(r.tables) - 1
	}
	t := r.tables[at]
	if !slices.Contains(t.columns, column) {
		t.columns = append(t.columns, column)
	}
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	t.cells[row+"\x00"+column] = mark
}

// print writes the tables and the sum, and says whether all is as it should be.
func (r *report) print() bool {
	for _, t := range r.tables {
		t.print()
	}
	for cell, defect := range r.known {
		if strings.Contains(cell, r.only) && !slices.Contains(r.tried, cell) {
			r.reasons = append(r.reasons, fmt.Sprintf("%s\n  is listed as a known failure (%s), but there is no such cell", cell, defect))
		}
	}
	failed := 0
	for _, reason := range r.reasons {
		if !strings.Contains(reason, "\n  known (") {
			failed++
		}
		fmt.Printf("\n%s\n", reason)
	}
	fmt.Printf("\n%d known failures\n", r.expected)
	fmt.Printf("%d passed, %d failed\n", r.passed, failed)
	return failed == 0 && len(r.tried) > 0
}

func (t *table) print() {
	grid := [][]string{append([]string{t.name}, t.columns...)}
	for _, row := range t.rows {
		line := []string{row}
		for _, column := range t.columns {
			line = append(line, t.cells[row+"\x00"+column])
		}
		grid = append(grid, line)
	}
	widths := make([]int, len(grid[0]))
	for _, line := range grid {
		for at, cell := range line {
			widths[at] = max(widths[at], utf8.RuneCountInString(cell))
		}
	}
	fmt.Println()
	for number, line := range grid {
		for at, cell := range line {
			fmt.Printf("| %s%s ", cell, strings.Repeat(" ", widths[at]-utf8.RuneCountInString(cell)))
		}
		fmt.Println("|")
		if number == 0 {
			for _, width := range widths {
				fmt.Printf("|%s", strings.Repeat("-", width+2))
			}
			fmt.Println("|")
		}
	}
}
