package main

import (
	"encoding/json"
	"reflect"

	"github.com/containernetworking/cni/pkg/version"
)

type object = map[string]any

// A spec is a way to say a version in a configuration. "empty", "absent" and "null" all mean 0.1.0.
type spec struct {
	label string
	value any // nil: none at all
}

type null struct{}

func (null) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

var specs = []spec{
	{"0.1.0", "0.1.0"},
	{"0.2.0", "0.2.0"},
	{"empty", ""},
	{"absent", nil},
	{"null", null{}},
	{"0.3.0", "0.3.0"},
	{"0.3.1", "0.3.1"},
	{"0.4.0", "0.4.0"},
	{"1.0.0", "1.0.0"},
	{"1.1.0", "1.1.0"},
}

// effective is the version that is meant.
func (s spec) effective() string {
	if text, ok := s.value.(string); ok && text != "" {
		return text
	}
	return "0.1.0"
}

func (s spec) atLeast(other string) bool {
	is, err := version.GreaterThanOrEqualTo(s.effective(), other)
	return err == nil && is
}

// reachesLibcni tells whether a list can say it so: libcni writes `"cniVersion": ""` where a list has none.
func (s spec) reachesLibcni() bool {
	_, ok := s.value.(string)
	return ok
}

// isAnswered tells whether what an answer says of its version fits.
func (s spec) isAnswered(got any) bool {
	return got == s.effective() || s.effective() == "0.1.0" && s.value != "0.1.0" && (got == nil || got == "")
}

// result is what the plugin before gives, with every key that the version has.
func (s spec) result(c *container) object {
	dns := object{"nameservers": []any{"192.0.2.53"}, "domain": "example.org", "search": []any{"a.example.org"}, "options": []any{"ndots:1"}}
	if !s.atLeast("0.3.0") {
		return object{
			"cniVersion": s.effective(),
			"ip4":        object{"ip": c.address + "/30", "gateway": c.gateway, "routes": []any{object{"dst": "0.0.0.0/0", "gw": c.gateway}}},
			"ip6":        object{"ip": c.address6 + "/112", "gateway": c.gateway6, "routes": []any{object{"dst": "::/0", "gw": c.gateway6}}},
			"dns":        dns,
		}
	}
	veth := object{"name": c.veth, "mac": "02:00:00:00:00:01"}
	eth0 := object{"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": c.netns}
	address := object{"interface": 1.0, "address": c.address + "/30", "gateway": c.gateway}
	address6 := object{"interface": 1.0, "address": c.address6 + "/112", "gateway": c.gateway6}
	route := object{"dst": "0.0.0.0/0", "gw": c.gateway}
	if !s.atLeast("1.0.0") {
		address["version"], address6["version"] = "4", "6"
	}
	if s.atLeast("1.1.0") {
		eth0["mtu"], eth0["socketPath"], eth0["pciID"] = 1400.0, "/run/socket", "0000:00:1f.6"
		route["mtu"], route["advmss"], route["priority"], route["table"], route["scope"] = 1400.0, 1360.0, 100.0, 254.0, 0.0
	}
	return object{
		"cniVersion": s.effective(),
		"interfaces": []any{veth, eth0},
		"ips":        []any{address, address6},
		"routes":     []any{route, object{"dst": "::/0", "gw": c.gateway6}},
		"dns":        dns,
	}
}

// configuration is what the plugin reads from stdin when nobody adds anything to it.
func (h *host) configuration(s spec) object {
	configuration := object{"name": network, "type": "quantum-nat", "stateDir": h.state(), "capabilities": object{"portMappings": true}}
	if s.value != nil {
		configuration["cniVersion"] = s.value
	}
	return configuration
}

// attachment is the configuration of ADD, CHECK and DEL, with a published port.
func (h *host) attachment(s spec, c *container, port int) object {
	configuration := h.configuration(s)
	configuration["prevResult"] = s.result(c)
	configuration["runtimeConfig"] = object{"portMappings": []any{object{"hostPort": port, "containerPort": 80, "protocol": "tcp"}}}
	return configuration
}

// with returns a copy that has these keys as well.
func with(configuration object, more object) object {
	changed := object{}
	for key, value := range configuration {
		changed[key] = value
	}
	for key, value := range more {
		changed[key] = value
	}
	return changed
}

// without returns a copy that lacks these keys.
func without(configuration object, keys ...string) object {
	changed := with(configuration, nil)
	for _, key := range keys {
		delete(changed, key)
	}
	return changed
}

// isSame fails where an answer is not the result that was given, in the version that was asked in.
func (s spec) isSame(output []byte, given object) error {
	var got object
	if err := json.Unmarshal(output, &got); err != nil {
		return fail("the result is not one JSON object: %v: %q", err, output)
	}
	if !s.isAnswered(got["cniVersion"]) {
		return fail("the result's cniVersion is %v", got["cniVersion"])
	}
	if got, given := without(got, "cniVersion"), without(given, "cniVersion"); !reflect.DeepEqual(got, given) {
		return fail("the result is %v, not %v as it was given", got, given)
	}
	return nil
}
