package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"unicode"
)

// checkKeys tries each documented key: null is as absent, and another spelling is refused rather than ignored.
func checkKeys(h *host, report *report, schema string) error {
	content, err := os.ReadFile(schema)
	if err != nil {
		return err
	}
	var described struct{ Properties map[string]json.RawMessage }
	if err := json.Unmarshal(content, &described); err != nil {
		return err
	}
	keys := make([]string, 0, len(described.Properties))
	for key := range described.Properties {
		if key != "type" && key != "capabilities" { // libcni reads these two
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	if len(keys) == 0 {
		return fail("%s describes no key", schema)
	}
	for _, key := range keys {
		report.try("Keys", key, "null is as absent", func() error {
			return h.attempt(newest, func(a *attempt) error {
				configuration := with(a.attachment(newest, a.container, a.port), object{key: null{}})
				if key == "stateDir" {
					_, err := a.succeeds("DEL", a.container, configuration) // ADD would use the host's own
					return err
				}
				return errorsInOrder(
					func() error { return a.adds(configuration) },
					func() error { return a.isServed(a.port) },
					func() error { _, err := a.succeeds("CHECK", a.container, configuration); return err },
					func() error { return a.deletes(configuration) },
				)
			})
		})
		for _, other := range []struct{ column, spelling string }{{"Capital", capital(key)}, {"UPPER", strings.ToUpper(key)}, {"lower", strings.ToLower(key)}} {
			report.try("Keys", key, other.column+" is refused", func() error {
				if other.spelling == key {
					return notApplicable
				}
				return h.attempt(newest, func(a *attempt) error {
					configuration := with(a.attachment(newest, a.container, a.port), object{other.spelling: true})
					got, err := a.ask("ADD", a.container, configuration)
					if err != nil {
						return err
					}
					return isErrorThatNames(got, 7, other.spelling)
				})
			})
		}
	}
	return nil
}

func capital(key string) string {
	letters := []rune(key)
	letters[0] = unicode.ToUpper(letters[0])
	return string(letters)
}

func errorsInOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
