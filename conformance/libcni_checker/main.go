// Asks the plugin everything that CNI has a word for, through libcni where libcni can ask it and directly where it cannot, and prints a table.
//
//	libcni_checker -plugin PROGRAM -schema FILE -known FILE [-only TEXT]
//
// Run it in a network namespace of its own, as root. It fails when a cell fails that is not listed as known, and when a known one has passed.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
)

func main() {
	log.SetFlags(0)
	if command := os.Getenv("CNI_COMMAND"); command != "" {
		if err := standIn(filepath.Base(os.Args[0]), command); err != nil {
			log.Fatal(err)
		}
		return
	}
	plugin := flag.String("plugin", "", "the plugin to check")
	schema := flag.String("schema", "", "the JSON schema of its configuration: each key in it is tried")
	known := flag.String("known", "", "the file that lists known failures")
	only := flag.String("only", "", "check only the rows whose names contain this")
	verbose := flag.Bool("verbose", false, "say why known failures fail, too")
	flag.Parse()
	passed, err := check(*plugin, *schema, *known, *only, *verbose)
	if err != nil {
		log.Fatalf("libcni_checker: %v", err)
	}
	if !passed {
		os.Exit(1)
	}
}

func check(plugin, schema, known, only string, verbose bool) (bool, error) {
	failures, err := readKnown(known)
	if err != nil {
		return false, err
	}
	host, err := newHost(plugin)
	if err != nil {
		return false, err
	}
	defer host.close()
	report := &report{known: failures, only: only, verbose: verbose}
	checkVerbs(host, report)
	checkErrors(host, report)
	checkInput(host, report)
	if err := checkKeys(host, report, schema); err != nil {
		return false, err
	}
	return report.print(), nil
}

// fail is shorthand for the reason of a failed cell.
func fail(format string, arguments ...any) error { return fmt.Errorf(format, arguments...) }
