package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

var verbs = []string{"ADD", "CHECK", "DEL", "GC", "STATUS"}

var newest = spec{"1.1.0", "1.1.0"}

// checkInput gives each verb what is not a configuration, and an environment that is none.
func checkInput(h *host, report *report) {
	for _, row := range garbage {
		for _, verb := range verbs {
			report.try("On stdin", row.name, verb, func() error {
				return h.attempt(newest, func(a *attempt) error { return a.survives(verb, row.input, row.codes) })
			})
		}
		report.try("On stdin", row.name, "VERSION", func() error {
			return h.attempt(newest, func(a *attempt) error {
				got, err := a.call(a.environment("VERSION", nil), row.input)
				if err != nil || got.status != 0 || !bytes.Contains(got.stdout, []byte("supportedVersions")) {
					return fail("VERSION: status %d, %q, %v", got.status, got.stdout, err)
				}
				return nil
			})
		})
	}
	for _, change := range changes {
		for _, verb := range verbs {
			report.try("In the configuration", change.name, verb, func() error {
				if !slices.Contains(change.verbs, verb) {
					return notApplicable
				}
				return h.attempt(newest, func(a *attempt) error {
					configuration := a.attachment(newest, a.container, a.port)
					change.apply(configuration)
					if change.codes == nil {
						_, err := a.succeeds(verb, a.container, configuration)
						if verb == "ADD" && err == nil {
							err = a.deletes(configuration)
						}
						return err
					}
					input, err := json.Marshal(configuration)
					if err != nil {
						return err
					}
					if verb == "DEL" && strings.HasPrefix(change.name, "cniVersion") {
						return a.survivesDelete(input, change.codes)
					}
					return a.survives(verb, input, change.codes)
				})
			})
		}
	}
	for _, variable := range []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"} {
		for _, verb := range verbs {
			report.try("In the environment", "Without "+variable, verb, func() error {
				return h.attempt(newest, func(a *attempt) error { return a.needs(verb, variable) })
			})
		}
	}
	for _, verb := range []string{"", "add", "REMOVE", "ADD ", "\xff"} {
		report.try("In the environment", fmt.Sprintf("CNI_COMMAND %q", verb), "any", func() error {
			return h.attempt(newest, func(a *attempt) error {
				input, err := json.Marshal(a.attachment(newest, a.container, a.port))
				if err != nil {
					return err
				}
				got, err := a.call(append(a.environment("ADD", a.container), "CNI_COMMAND="+verb), input)
				return errors.Join(err, isErrorThatNames(got, 4, "CNI_COMMAND"))
			})
		})
	}
}

type stdin struct {
	name  string
	input []byte
	codes []float64
}

var decoding = []float64{6}

var garbage = []stdin{
	{"Nothing", nil, decoding},
	{"White space", []byte(" \n\t"), decoding},
	{"null", []byte("null"), []float64{6, 7}},
	{"A list", []byte("[]"), decoding},
	{"A string", []byte(`"configuration"`), decoding},
	{"A number", []byte("1"), decoding},
	{"An empty object", []byte("{}"), []float64{7, 1}},
	{"Half an object", []byte(`{"cniVersion": "1.1.0", "name": "checked", "prevRes`), decoding},
	{"Two objects", []byte(`{"cniVersion": "1.1.0", "name": "checked"}{}`), decoding},
	{"A comment", []byte("{\"cniVersion\": \"1.1.0\", // here\n\"name\": \"checked\"}"), decoding},
	{"A comma too many", []byte(`{"cniVersion": "1.1.0", "name": "checked",}`), decoding},
	{"Not UTF-8", []byte("{\"cniVersion\": \"1.1.0\", \"name\": \"\xff\xfe\"}"), []float64{6, 7}},
	{"Half a surrogate", []byte(`{"cniVersion": "1.1.0", "name": "\ud800"}`), []float64{6, 7}},
	{"A NUL", []byte("{\"cniVersion\": \"1.1.0\", \"name\": \"checked\"}\x00"), decoding},
	{"UTF-16", []byte("\xff\xfe{\x00}\x00"), decoding},
	{"NaN", []byte(`{"cniVersion": "1.1.0", "name": NaN}`), decoding},
	{"100,000 brackets", bytes.Repeat([]byte("["), 100_000), decoding},
	{"100,000 objects in each other", append(bytes.Repeat([]byte(`{"a":`), 100_000), bytes.Repeat([]byte("}"), 100_000)...), []float64{6, 7, 1}},
	{"A number of 100,000 digits", []byte(`{"cniVersion": "1.1.0", "name": ` + strings.Repeat("9", 100_000) + `}`), []float64{6, 7}},
	{"A program", []byte("#!/bin/sh\nexit 0\n"), decoding},
}

func (a *attempt) survives(verb string, input []byte, codes []float64) error {
	got, err := a.call(a.environment(verb, a.container), input)
	if err != nil {
		return err
	}
	_, err = decodeError(got, func(code float64) bool { return slices.Contains(codes, code) })
	return err
}

// survivesDelete is for a DEL in a version that nobody speaks: CNI has an error for it, but a DEL that succeeds lets the runtime go on.
func (a *attempt) survivesDelete(input []byte, codes []float64) error {
	got, err := a.call(a.environment("DEL", a.container), input)
	if err != nil || got.status == 0 {
		return err
	}
	_, err = decodeError(got, func(code float64) bool { return slices.Contains(codes, code) })
	return err
}

type change struct {
	name  string
	verbs []string
	codes []float64 // nil: it succeeds
	apply func(object)
}

var (
	attaching = []string{"ADD", "CHECK"}
	adding    = []string{"ADD"}
	deleting  = []string{"DEL"}
	invalid   = []float64{6, 7}
)

func set(key string, value any) func(object) {
	return func(configuration object) { configuration[key] = value }
}

func setResult(key string, value any) func(object) {
	return func(configuration object) { configuration["prevResult"].(object)[key] = value }
}

func setAddress(key string, value any) func(object) {
	return func(configuration object) {
		configuration["prevResult"].(object)["ips"].([]any)[0].(object)[key] = value
	}
}

func setMapping(key string, value any) func(object) {
	return func(configuration object) {
		configuration["runtimeConfig"].(object)["portMappings"].([]any)[0].(object)[key] = value
	}
}

func moveMapping(from, to string) func(object) {
	return func(configuration object) {
		mapping := configuration["runtimeConfig"].(object)["portMappings"].([]any)[0].(object)
		mapping[to] = mapping[from]
		delete(mapping, from)
	}
}

var changes = []change{
	{`cniVersion "9.9.9"`, verbs, []float64{1}, set("cniVersion", "9.9.9")},
	{`cniVersion "1.2.0"`, verbs, []float64{1}, set("cniVersion", "1.2.0")},
	{`cniVersion "1"`, verbs, []float64{1}, set("cniVersion", "1")},
	{`cniVersion "one"`, verbs, []float64{1, 6}, set("cniVersion", "one")},
	{"cniVersion 1", verbs, []float64{1, 6}, set("cniVersion", 1)},
	{"cniVersion []", verbs, []float64{1, 6}, set("cniVersion", []any{})},
	{"name 5", verbs, invalid, set("name", 5)},
	{`name ""`, verbs, invalid, set("name", "")},
	{"name null", verbs, invalid, set("name", null{})},
	{"stateDir 5", verbs, invalid, set("stateDir", 5)},
	{`stateDir "relative"`, verbs, invalid, set("stateDir", "relative")},
	{`prevResult "x"`, attaching, invalid, set("prevResult", "x")},
	{"prevResult null", attaching, invalid, set("prevResult", null{})},
	{"prevResult null", deleting, nil, set("prevResult", null{})},
	{`prevResult "x"`, deleting, nil, set("prevResult", "x")},
	{"prevResult.ips an object", attaching, invalid, setResult("ips", object{})},
	{"prevResult.ips a list of strings", attaching, invalid, setResult("ips", []any{"10.0.0.1/8"})},
	{"prevResult.ips null", adding, nil, setResult("ips", null{})},
	{"prevResult.interfaces null", adding, nil, setResult("interfaces", null{})},
	{"prevResult.routes null", adding, nil, setResult("routes", null{})},
	{"prevResult.dns null", adding, nil, setResult("dns", null{})},
	{"prevResult.interfaces an object", attaching, invalid, setResult("interfaces", object{})},
	{"ips[].address without a prefix length", attaching, invalid, setAddress("address", "10.88.0.2")},
	{"ips[].address of nobody", attaching, invalid, setAddress("address", "10.88.0.300/24")},
	{"ips[].address 5", attaching, invalid, setAddress("address", 5)},
	{"ips[].address null", attaching, invalid, setAddress("address", null{})},
	{"ips[].gateway null", adding, nil, setAddress("gateway", null{})},
	{"ips[].interface null", adding, nil, setAddress("interface", null{})},
	{"ips[].interface 17", adding, nil, setAddress("interface", 17)},
	{"runtimeConfig null", adding, nil, set("runtimeConfig", null{})},
	{"runtimeConfig []", adding, invalid, set("runtimeConfig", []any{})},
	{"portMappings null", adding, nil, set("runtimeConfig", object{"portMappings": null{}})},
	{"portMappings an object", adding, invalid, set("runtimeConfig", object{"portMappings": object{}})},
	{"portMappings a list of numbers", adding, invalid, set("runtimeConfig", object{"portMappings": []any{80}})},
	{"capabilities null", adding, nil, set("capabilities", null{})},
	{"args null", adding, nil, set("args", null{})},
	{"ipam null", adding, nil, set("ipam", null{})},
	{"dns null", adding, nil, set("dns", null{})},
	{"hostPort 0", adding, invalid, setMapping("hostPort", 0)},
	{"hostPort -1", adding, invalid, setMapping("hostPort", -1)},
	{"hostPort 1.5", adding, invalid, setMapping("hostPort", 1.5)},
	{`hostPort "80"`, adding, invalid, setMapping("hostPort", "80")},
	{"hostPort true", adding, invalid, setMapping("hostPort", true)},
	{"containerPort null", adding, invalid, setMapping("containerPort", null{})},
	{"protocol null", adding, nil, setMapping("protocol", null{})},
	{`protocol ""`, adding, nil, setMapping("protocol", "")},
	{`protocol "TCP"`, adding, nil, setMapping("protocol", "TCP")},
	{`protocol "icmp"`, adding, invalid, setMapping("protocol", "icmp")},
	{"protocol 6", adding, invalid, setMapping("protocol", 6)},
	{"hostIP null", adding, nil, setMapping("hostIP", null{})},
	{`hostIP ""`, adding, nil, setMapping("hostIP", "")},
	{`hostIP "localhost"`, adding, invalid, setMapping("hostIP", "localhost")},
	{`hostIP "10.0.0.0/8"`, adding, invalid, setMapping("hostIP", "10.0.0.0/8")},
	{"HostPort, as containerd writes it", adding, nil, moveMapping("hostPort", "HostPort")},
	{"hostport", adding, nil, moveMapping("hostPort", "hostport")},
	{"HOSTPORT", adding, nil, moveMapping("hostPort", "HOSTPORT")},
	{"One mapping twice", adding, nil, func(configuration object) {
		runtime := configuration["runtimeConfig"].(object)
		mappings := runtime["portMappings"].([]any)
		runtime["portMappings"] = append(mappings, mappings[0])
	}},
	{"cni.dev/valid-attachments 5", []string{"GC"}, invalid, set("cni.dev/valid-attachments", 5)},
	{"cni.dev/valid-attachments of strings", []string{"GC"}, invalid, set("cni.dev/valid-attachments", []any{"c1"})},
	{"cni.dev/valid-attachments without ifname", []string{"GC"}, invalid, set("cni.dev/valid-attachments", []any{object{"containerID": "c1"}})},
}

// needs fails unless a verb names the variable that it lacks; where it needs none such it must not ask for it.
func (a *attempt) needs(verb, variable string) error {
	required := map[string][]string{
		"ADD":   {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
		"CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
		"DEL":   {"CNI_CONTAINERID", "CNI_IFNAME"},
	}
	configuration := a.attachment(newest, a.container, a.port)
	input, err := json.Marshal(configuration)
	if err != nil {
		return err
	}
	if verb == "CHECK" {
		if err := a.adds(configuration); err != nil {
			return err
		}
	}
	environment := slices.DeleteFunc(a.environment(verb, a.container), func(entry string) bool { return strings.HasPrefix(entry, variable+"=") })
	got, err := a.call(environment, input)
	if err != nil {
		return err
	}
	if slices.Contains(required[verb], variable) {
		return isErrorThatNames(got, 4, variable)
	}
	// CNI_PATH is required by CNI's text for GC and STATUS, and of no use to this plugin: both answers are right.
	if variable == "CNI_PATH" && got.status != 0 {
		return isErrorThatNames(got, 4, variable)
	}
	if got.status != 0 {
		return fail("it fails: %q", got.stdout)
	}
	return nil
}

func isErrorThatNames(got outcome, wanted float64, variable string) error {
	found, err := decodeError(got, code(wanted))
	if err != nil {
		return err
	}
	if !strings.Contains(fmt.Sprint(found["msg"], found["details"]), variable) {
		return fail("the message does not name %s: %v", variable, found["msg"])
	}
	return nil
}
