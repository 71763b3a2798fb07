package main

import (
	"encoding/json"
	"errors"
	"strings"
)

func anyCode(code float64) bool { return code > 0 }

func code(wanted float64) func(float64) bool {
	return func(got float64) bool { return got == wanted }
}

// decodeError fails where an outcome is not an error as CNI wants it: status 1, one JSON object on stdout, with a code and a message.
func decodeError(got outcome, expected func(float64) bool) (object, error) {
	if got.status == 0 {
		return nil, fail("it succeeds: stdout %q", got.stdout)
	}
	if got.status != 1 {
		return nil, fail("status %d, stdout %q, stderr %q", got.status, got.stdout, got.stderr)
	}
	var found object
	if err := json.Unmarshal(got.stdout, &found); err != nil {
		return nil, fail("stdout is not one JSON object: %v: %q", err, got.stdout)
	}
	number, ok := found["code"].(float64)
	if !ok || number < 1 || number != float64(uint(number)) {
		return nil, fail("code is %v", found["code"])
	}
	if number == 199 || number == 999 || number == 3 {
		return nil, fail("code %v: %v, %v", number, found["msg"], found["details"])
	}
	if text, ok := found["msg"].(string); !ok || text == "" {
		return nil, fail("msg is %v", found["msg"])
	}
	if details, given := found["details"]; given {
		if _, ok := details.(string); !ok {
			return nil, fail("details are %v", details)
		}
	}
	if strings.Contains(string(got.stdout), "Traceback") || strings.Contains(string(got.stderr), "Traceback") {
		return nil, fail("a traceback: %q %q", got.stdout, got.stderr)
	}
	if !expected(number) {
		return nil, fail("code is %v: %v", number, found["msg"])
	}
	return found, nil
}

// isRefused fails unless a call ends in an error with this code, in the version that it was made in.
func (a *attempt) isRefused(verb string, configuration object, expected func(float64) bool) error {
	got, err := a.ask(verb, a.container, configuration)
	if err != nil {
		return err
	}
	return a.isErrorInVersion(got, expected)
}

func (a *attempt) isErrorInVersion(got outcome, expected func(float64) bool) error {
	found, err := decodeError(got, expected)
	if err != nil {
		return err
	}
	if !a.spec.isAnswered(found["cniVersion"]) {
		return fail("the error's cniVersion is %v", found["cniVersion"])
	}
	return nil
}

// checkErrors looks at one error of each kind, in each version.
func checkErrors(h *host, report *report) {
	for _, row := range errorRows {
		for _, s := range specs {
			report.try("Errors, in the caller's version", row.name, s.label, func() error { return h.attempt(s, row.check) })
		}
	}
}

var errorRows = []row{
	{"7: ADD without prevResult", func(a *attempt) error {
		return a.isRefused("ADD", without(a.attachment(a.spec, a.container, a.port), "prevResult"), code(7))
	}},
	{"7: a host port of 70000", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		configuration["runtimeConfig"] = object{"portMappings": []any{object{"hostPort": 70000, "containerPort": 80}}}
		return a.isRefused("ADD", configuration, code(7))
	}},
	{"7: no network name", func(a *attempt) error {
		return a.isRefused("ADD", without(a.attachment(a.spec, a.container, a.port), "name"), code(7))
	}},
	{"7: a network name that is a path", func(a *attempt) error {
		return a.isRefused("ADD", with(a.attachment(a.spec, a.container, a.port), object{"name": "../up"}), code(7))
	}},
	{"4: a container ID that is a path", func(a *attempt) error {
		a.container.id = "../up"
		return a.isRefused("ADD", a.attachment(a.spec, a.container, a.port), code(4))
	}},
	{"4: an interface name of 16 bytes", func(a *attempt) error {
		input, err := json.Marshal(a.attachment(a.spec, a.container, a.port))
		if err != nil {
			return err
		}
		got, err := a.call(append(a.environment("ADD", a.container), "CNI_IFNAME=interface0123456"), input)
		return errors.Join(err, a.isErrorInVersion(got, code(4)))
	}},
	{"4: a namespace that is not there", func(a *attempt) error {
		a.container.netns += "-not"
		defer func() { a.container.netns = strings.TrimSuffix(a.container.netns, "-not") }()
		return a.isRefused("ADD", a.attachment(a.spec, a.container, a.port), code(4))
	}},
	{"8: the plugin's own namespace", func(a *attempt) error {
		netns := a.container.netns
		a.container.netns = ownNetns
		defer func() { a.container.netns = netns }()
		return a.isRefused("ADD", a.attachment(a.spec, a.container, a.port), code(8))
	}},
	{"100: a host port that is in use", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		if err := a.adds(configuration); err != nil {
			return err
		}
		other, err := a.host.container()
		if err != nil {
			return err
		}
		defer other.loseNetns()
		second := &attempt{a.host, other, a.spec, a.port}
		refused := second.isRefused("ADD", second.attachment(a.spec, other, a.port), code(100))
		return errors.Join(refused, a.isServed(a.port), a.deletes(configuration))
	}},
	{"CHECK of what never was; 1 before 0.4.0", func(a *attempt) error {
		expected := anyCode
		if !a.spec.atLeast("0.4.0") {
			expected = code(1)
		}
		return a.isRefused("CHECK", a.attachment(a.spec, a.container, a.port), expected)
	}},
	{"7: CHECK without prevResult", func(a *attempt) error {
		if !a.spec.atLeast("0.4.0") {
			return notApplicable
		}
		return a.isRefused("CHECK", without(a.attachment(a.spec, a.container, a.port), "prevResult"), code(7))
	}},
	{"GC with a list that is none; 1 before 1.1.0", func(a *attempt) error {
		expected := code(7)
		if !a.spec.atLeast("1.1.0") {
			expected = code(1)
		}
		return a.isRefused("GC", with(a.configuration(a.spec), object{"cni.dev/valid-attachments": "all"}), expected)
	}},
	{"1: STATUS before 1.1.0", func(a *attempt) error {
		if a.spec.atLeast("1.1.0") {
			return notApplicable
		}
		return a.isRefused("STATUS", a.configuration(a.spec), code(1))
	}},
}
