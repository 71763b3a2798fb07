package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// An attempt is a container, a free host port, and a version to say things in.
type attempt struct {
	*host
	*container
	spec spec
	port int
}

// checkVerbs tries each verb in each version, directly and through libcni.
func checkVerbs(h *host, report *report) {
	for _, row := range directRows {
		for _, s := range specs {
			report.try("Asked directly", row.name, s.label, func() error { return h.attempt(s, row.check) })
		}
	}
	for _, row := range libcniRows {
		for _, s := range specs {
			report.try("Through libcni", row.name, s.label, func() error {
				if !s.reachesLibcni() {
					return notApplicable
				}
				return h.attempt(s, row.check)
			})
		}
	}
}

// attempt runs a check with a new container on a host where nothing else is.
func (h *host) attempt(s spec, check func(*attempt) error) (err error) {
	if err := h.reset(); err != nil {
		return err
	}
	c, err := h.container()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.loseNetns()) }()
	return check(&attempt{h, c, s, h.anyPort()})
}

type row struct {
	name  string
	check func(*attempt) error
}

var directRows = []row{
	{"VERSION answers in the version that it is asked in", func(a *attempt) error {
		output, err := a.succeeds("VERSION", nil, without(a.configuration(a.spec), "name", "type", "stateDir", "capabilities"))
		if err != nil {
			return err
		}
		var answer object
		if err := json.Unmarshal(output, &answer); err != nil {
			return err
		}
		// Who says no version gets the newest, as from every plugin built with CNI's own library.
		if !a.spec.isAnswered(answer["cniVersion"]) && !(a.spec.effective() == "0.1.0" && a.spec.value != "0.1.0" && answer["cniVersion"] == version.Current()) {
			return fail("cniVersion is %v", answer["cniVersion"])
		}
		return nil
	}},
	{"ADD passes every key of prevResult through", func(a *attempt) error { return a.adds(a.attachment(a.spec, a.container, a.port)) }},
	{"ADD publishes the port, CHECK passes, DEL closes it", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		if err := errors.Join(a.adds(configuration), a.isServed(a.port)); err != nil {
			return err
		}
		if a.spec.atLeast("0.4.0") {
			if _, err := a.succeeds("CHECK", a.container, configuration); err != nil {
				return err
			}
		}
		return a.deletes(configuration)
	}},
	{"ADD without port mappings", func(a *attempt) error {
		configuration := without(a.attachment(a.spec, a.container, a.port), "runtimeConfig")
		return errors.Join(a.adds(configuration), a.deletes(configuration))
	}},
	{"ADD twice gives the same result", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		return errors.Join(a.adds(configuration), a.adds(configuration), a.isServed(a.port), a.deletes(configuration))
	}},
	{"ADD takes addresses that name no interface", func(a *attempt) error {
		if !a.spec.atLeast("0.3.0") {
			return notApplicable // has no interfaces at all
		}
		configuration := a.attachment(a.spec, a.container, a.port)
		result := without(configuration["prevResult"].(object), "interfaces")
		for _, entry := range result["ips"].([]any) {
			delete(entry.(object), "interface")
		}
		configuration["prevResult"] = result
		return errors.Join(a.adds(configuration), a.isServed(a.port), a.deletes(configuration))
	}},
	{"ADD of an IPv4 address alone", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		result := without(configuration["prevResult"].(object), "ip6")
		if ips, ok := result["ips"].([]any); ok {
			result["ips"] = ips[:1]
		}
		configuration["prevResult"] = result
		if err := a.adds(configuration); err != nil {
			return err
		}
		if got, err := reaches(hostAddress, a.port); err != nil || got != a.id {
			return fail("the port leads to %q, %v", got, err)
		}
		return a.deletes(configuration)
	}},
	{"Unknown keys are ignored everywhere", func(a *attempt) error {
		configuration := with(a.attachment(a.spec, a.container, a.port), object{
			"unknown": object{"of": []any{"somebody", nil}}, "args": object{"cni": object{"labels": []any{}}},
			"ipam": object{}, "dns": object{}, "cni.dev/unknown": true, "ipMasq": true,
		})
		mapping := configuration["runtimeConfig"].(object)["portMappings"].([]any)[0].(object)
		mapping["unknown"], mapping["name"] = "of somebody", "http"
		configuration["runtimeConfig"].(object)["bandwidth"] = object{"ingressRate": 1}
		return errors.Join(a.adds(configuration), a.isServed(a.port), a.deletes(configuration))
	}},
	{"Unknown variables and CNI_ARGS are ignored", func(a *attempt) error {
		input, err := json.Marshal(a.attachment(a.spec, a.container, a.port))
		if err != nil {
			return err
		}
		environment := append(a.environment("ADD", a.container), "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=p;NOTHING", "CNI_UNKNOWN=x", "TRACEPARENT=00-0-0-00")
		got, err := a.call(environment, input)
		if err != nil || got.status != 0 {
			return fail("ADD fails: %v, %q", err, got.stdout)
		}
		return a.deletes(a.attachment(a.spec, a.container, a.port))
	}},
	{"DEL twice", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		return errors.Join(a.adds(configuration), a.deletes(configuration), a.deletes(configuration))
	}},
	{"DEL of what never was", func(a *attempt) error { return a.deletes(a.attachment(a.spec, a.container, a.port)) }},
	{"DEL with neither namespace nor prevResult", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		if err := errors.Join(a.adds(configuration), a.loseNetns()); err != nil {
			return err
		}
		a.netns = ""
		return a.deletes(without(configuration, "prevResult"))
	}},
	{"DEL without runtimeConfig closes the port", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		return errors.Join(a.adds(configuration), a.deletes(without(configuration, "runtimeConfig")))
	}},
	{"DEL when the state directory is lost", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		return errors.Join(a.adds(configuration), os.RemoveAll(a.state()), a.deletes(configuration))
	}},
	{"DEL when state, namespace and route are lost", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		if err := errors.Join(a.adds(configuration), os.RemoveAll(a.state()), a.loseNetns()); err != nil {
			return err
		}
		a.netns = ""
		return a.deletes(configuration)
	}},
	{"DEL when the table is lost", func(a *attempt) error {
		configuration := a.attachment(a.spec, a.container, a.port)
		return errors.Join(a.adds(configuration), run("nft", "flush ruleset"), a.deletes(configuration))
	}},
	{"DEL after an ADD that was refused", func(a *attempt) error {
		for _, mapping := range []object{{"hostPort": 70000, "containerPort": 80}, {"hostPort": "x"}, {}} {
			configuration := a.attachment(a.spec, a.container, a.port)
			configuration["runtimeConfig"] = object{"portMappings": []any{mapping}}
			if _, err := a.succeeds("ADD", a.container, configuration); err == nil {
				return fail("ADD takes %v", mapping)
			}
			if _, err := a.succeeds("DEL", a.container, configuration); err != nil {
				return err
			}
		}
		return nil
	}},
	{"CHECK fails when the table is lost", func(a *attempt) error {
		if !a.spec.atLeast("0.4.0") {
			return notApplicable
		}
		configuration := a.attachment(a.spec, a.container, a.port)
		if err := errors.Join(a.adds(configuration), run("nft", "flush ruleset")); err != nil {
			return err
		}
		return errors.Join(a.isRefused("CHECK", configuration, anyCode), a.deletes(configuration))
	}},
	{"CHECK fails when the record is lost", func(a *attempt) error {
		if !a.spec.atLeast("0.4.0") {
			return notApplicable
		}
		configuration := a.attachment(a.spec, a.container, a.port)
		if err := errors.Join(a.adds(configuration), os.RemoveAll(a.state())); err != nil {
			return err
		}
		return errors.Join(a.isRefused("CHECK", configuration, anyCode), a.deletes(configuration))
	}},
	{"GC keeps what is valid, and removes the rest", func(a *attempt) error {
		return a.collects(func(kept *container) object {
			valid := []any{object{"containerID": kept.id, "ifname": "eth0"}, object{"containerID": "unknown", "ifname": "eth0"}}
			return object{"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
		}, true)
	}},
	{"GC by the key of CNI's first text", func(a *attempt) error {
		return a.collects(func(kept *container) object {
			return object{"cni.dev/attachments": []any{object{"containerID": kept.id, "ifname": "eth0"}}}
		}, true)
	}},
	{"GC with null removes everything", func(a *attempt) error {
		return a.collects(func(*container) object { return object{"cni.dev/valid-attachments": null{}} }, false)
	}},
	{"GC with an empty list removes everything", func(a *attempt) error {
		return a.collects(func(*container) object { return object{"cni.dev/valid-attachments": []any{}} }, false)
	}},
	{"GC without a list removes what has no namespace", func(a *attempt) error {
		return a.collects(func(*container) object { return object{} }, true)
	}},
	{"GC leaves another network's attachments", func(a *attempt) error {
		if !a.spec.atLeast("1.1.0") {
			return notApplicable
		}
		configuration := a.attachment(a.spec, a.container, a.port)
		if err := a.adds(configuration); err != nil {
			return err
		}
		other := with(a.configuration(a.spec), object{"name": "other", "cni.dev/valid-attachments": []any{}})
		if _, err := a.succeeds("GC", nil, other); err != nil {
			return err
		}
		return errors.Join(a.isServed(a.port), a.deletes(configuration))
	}},
	{"STATUS is ready", func(a *attempt) error {
		if !a.spec.atLeast("1.1.0") {
			return notApplicable
		}
		_, err := a.succeeds("STATUS", nil, a.configuration(a.spec))
		return err
	}},
	{"STATUS fails while the plugin cannot work", func(a *attempt) error {
		if !a.spec.atLeast("1.1.0") {
			return notApplicable
		}
		if err := os.WriteFile(a.state()+"-not", nil, 0o600); err != nil {
			return err
		}
		// 50: the plugin is not available; 51: with limits
		return a.isRefused("STATUS", with(a.configuration(a.spec), object{"stateDir": a.state() + "-not"}), func(code float64) bool { return code == 50 || code == 51 })
	}},
}

func (a *attempt) adds(configuration object) error {
	output, err := a.succeeds("ADD", a.container, configuration)
	if err != nil {
		return err
	}
	given, err := json.Marshal(configuration["prevResult"])
	if err != nil {
		return err
	}
	var normalised object
	if err := json.Unmarshal(given, &normalised); err != nil {
		return err
	}
	return a.spec.isSame(output, normalised)
}

// deletes calls DEL, and fails unless the port is closed then.
func (a *attempt) deletes(configuration object) error {
	if _, err := a.succeeds("DEL", a.container, configuration); err != nil {
		return err
	}
	return isClosed(a.port)
}

// collects adds three containers, one of which is dead, and calls GC with these keys. The living one that the keys do not name is closed
// unless they name none at all.
func (a *attempt) collects(keys func(kept *container) object, keeps bool) error {
	if !a.spec.atLeast("1.1.0") {
		return notApplicable
	}
	kept, dead := a.container, &attempt{a.host, nil, a.spec, a.anyPort()}
	var err error
	if dead.container, err = a.host.container(); err != nil {
		return err
	}
	if err := errors.Join(a.adds(a.attachment(a.spec, kept, a.port)), dead.adds(a.attachment(a.spec, dead.container, dead.port)), dead.loseNetns()); err != nil {
		return err
	}
	configuration := with(a.configuration(a.spec), keys(kept))
	for range 2 { // GC may come again at any time
		if _, err := a.succeeds("GC", nil, configuration); err != nil {
			return err
		}
		found, err := filepath.Glob(filepath.Join(a.state(), "attachments", dead.id, "*"))
		if err != nil || len(found) > 0 {
			return fail("the dead container is still on record: %v, %v", found, err)
		}
		state := isClosed(a.port)
		if keeps {
			state = a.isServed(a.port)
		}
		if state != nil {
			return state
		}
	}
	return a.deletes(a.attachment(a.spec, kept, a.port))
}

// A caller is libcni with a list: the plugin that gives the result, the one that is checked, and the one that writes down what it is given.
type caller struct {
	*attempt
	cni       *libcni.CNIConfig
	list      *libcni.NetworkConfigList
	runtime   *libcni.RuntimeConf
	writtenTo string
}

func (a *attempt) libcni() (*caller, error) {
	c := &caller{attempt: a, writtenTo: a.record()}
	c.cni = libcni.NewCNIConfigWithCacheDir([]string{a.bin()}, a.cache(), nil)
	c.runtime = &libcni.RuntimeConf{
		ContainerID: a.id, NetNS: a.netns, IfName: "eth0",
		CapabilityArgs: object{"portMappings": []any{object{"hostPort": a.port, "containerPort": 80, "protocol": "tcp"}}},
	}
	list, err := c.listIn(a.spec)
	c.list = list
	return c, err
}

func (c *caller) listIn(s spec) (*libcni.NetworkConfigList, error) {
	configuration := object{"name": network, "plugins": []any{
		object{"type": before, "result": s.result(c.container)},
		object{"type": "quantum-nat", "stateDir": c.state(), "capabilities": object{"portMappings": true}},
		object{"type": behind, "writeTo": c.writtenTo},
	}}
	if s.value != nil {
		configuration["cniVersion"] = s.value
	}
	encoded, err := json.Marshal(configuration)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(encoded)
}

func (c *caller) add() (types.Result, error) {
	return c.cni.AddNetworkList(context.Background(), c.list, c.runtime)
}

func (c *caller) delete() error {
	return errors.Join(c.cni.DelNetworkList(context.Background(), c.list, c.runtime), isClosed(c.port))
}

func through(check func(*caller) error) func(*attempt) error {
	return func(a *attempt) error {
		c, err := a.libcni()
		if err != nil {
			return err
		}
		return check(c)
	}
}

var libcniRows = []row{
	{"GetVersionInfo names this version", through(func(c *caller) error {
		info, err := c.cni.GetVersionInfo(context.Background(), "quantum-nat")
		if err != nil {
			return err
		}
		if !slices.Contains(info.SupportedVersions(), c.spec.effective()) {
			return fail("supported are %v", info.SupportedVersions())
		}
		return nil
	})},
	{"ValidateNetworkList takes the list", through(func(c *caller) error {
		capabilities, err := c.cni.ValidateNetworkList(context.Background(), c.list)
		if err == nil && !slices.Equal(capabilities, []string{"portMappings"}) {
			return fail("capabilities are %v", capabilities)
		}
		return err
	})},
	{"ADD's result is of this version, and as the plugin before gave it", through(func(c *caller) error {
		result, err := c.add()
		if err != nil {
			return err
		}
		if result.Version() != c.spec.effective() {
			return fail("the result's version is %q", result.Version())
		}
		var got, given bytes.Buffer
		if err := errors.Join(result.PrintTo(&got), printGiven(&given, c)); err != nil {
			return err
		}
		if got.String() != given.String() {
			return fail("the result is %s, not %s", got.String(), given.String())
		}
		return c.delete()
	})},
	{"The plugin behind is given the same prevResult", through(func(c *caller) error {
		if _, err := c.add(); err != nil {
			return err
		}
		written, err := os.ReadFile(c.writtenTo + ".ADD")
		if err != nil {
			return err
		}
		var seen struct{ PrevResult json.RawMessage }
		if err := json.Unmarshal(written, &seen); err != nil {
			return err
		}
		result, err := version.NewResult(c.spec.effective(), seen.PrevResult)
		if err != nil {
			return err
		}
		var got, given bytes.Buffer
		if err := errors.Join(result.PrintTo(&got), printGiven(&given, c)); err != nil {
			return err
		}
		if got.String() != given.String() {
			return fail("prevResult is %s, not %s", got.String(), given.String())
		}
		return c.delete()
	})},
	{"ADD converts to the newest version", through(func(c *caller) error {
		result, err := c.add()
		if err != nil {
			return err
		}
		if _, err := result.GetAsVersion(version.Current()); err != nil {
			return err
		}
		return c.delete()
	})},
	{"ADD, CHECK, DEL with the cache", through(func(c *caller) error {
		result, err := c.add()
		if err != nil {
			return err
		}
		if err := c.isServed(c.port); err != nil {
			return err
		}
		cached, err := c.cni.GetNetworkListCachedResult(c.list, c.runtime)
		if err != nil {
			return err
		}
		if c.spec.value != "" && !reflect.DeepEqual(normalised(cached), normalised(result)) {
			return fail("cached is %v, not %v", cached, result)
		}
		if err := c.check(); err != nil {
			return err
		}
		return c.delete()
	})},
	{"DEL when the cache is lost", through(func(c *caller) error {
		if _, err := c.add(); err != nil {
			return err
		}
		return errors.Join(os.RemoveAll(c.cache()), c.delete())
	})},
	{"DEL when the cache is damaged", through(func(c *caller) error {
		if _, err := c.add(); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(c.cache(), "results", "*"))
		if err != nil || len(files) != 1 {
			return fail("the cache is %v, %v", files, err)
		}
		return errors.Join(os.WriteFile(files[0], []byte(`{"kind": "cniCacheV1", "result": {"ips": [`), 0o600), c.delete())
	})},
	{"DEL with no capability arguments", through(func(c *caller) error {
		if _, err := c.add(); err != nil {
			return err
		}
		c.runtime.CapabilityArgs = nil
		return c.delete()
	})},
	{"DEL of a dead container, twice", through(func(c *caller) error {
		if _, err := c.add(); err != nil {
			return err
		}
		if err := c.loseNetns(); err != nil {
			return err
		}
		c.runtime.NetNS = ""
		return errors.Join(c.delete(), c.delete())
	})},
	{"A list that is moved from this version to 1.1.0", through(func(c *caller) error {
		if _, err := c.add(); err != nil {
			return err
		}
		var err error
		if c.list, err = c.listIn(spec{"1.1.0", "1.1.0"}); err != nil {
			return err
		}
		return errors.Join(c.check(), c.delete())
	})},
	{"A list that is moved from 1.1.0 to this version", through(func(c *caller) error {
		older := c.list
		var err error
		if c.list, err = c.listIn(spec{"1.1.0", "1.1.0"}); err != nil {
			return err
		}
		if _, err := c.add(); err != nil {
			return err
		}
		c.list = older
		return errors.Join(c.check(), c.delete())
	})},
	{"GC deletes what the cache has and the runtime has not", through(func(c *caller) error {
		if _, err := c.add(); err != nil {
			return err
		}
		if err := c.cni.GCNetworkList(context.Background(), c.list, &libcni.GCArgs{}); err != nil {
			return err
		}
		return errors.Join(isClosed(c.port), c.delete())
	})},
	{"GC keeps what is valid", through(func(c *caller) error {
		if _, err := c.add(); err != nil {
			return err
		}
		valid := []types.GCAttachment{{ContainerID: c.id, IfName: "eth0"}}
		if err := c.cni.GCNetworkList(context.Background(), c.list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
			return err
		}
		return errors.Join(c.isServed(c.port), c.delete())
	})},
	{"GC removes what is in no cache", through(func(c *caller) error {
		if !c.spec.atLeast("1.1.0") {
			return notApplicable
		}
		if _, err := c.add(); err != nil {
			return err
		}
		if err := os.RemoveAll(c.cache()); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(c.cache(), "results"), 0o700); err != nil {
			return err
		}
		if err := c.cni.GCNetworkList(context.Background(), c.list, &libcni.GCArgs{}); err != nil {
			return err
		}
		return errors.Join(isClosed(c.port), c.delete())
	})},
	{"STATUS is ready", through(func(c *caller) error { return c.cni.GetStatusNetworkList(context.Background(), c.list) })},
	{"An error has code and message", through(func(c *caller) error {
		c.runtime.CapabilityArgs = object{"portMappings": []any{object{"hostPort": 70000, "containerPort": 80}}}
		_, err := c.add()
		var decoded *types.Error
		if !errors.As(err, &decoded) {
			return fail("ADD of host port 70000: %v", err)
		}
		if decoded.Code != types.ErrInvalidNetworkConfig || decoded.Msg == "" {
			return fail("the error is %+v", decoded)
		}
		return c.delete()
	})},
	{"Eight containers at once", through(func(c *caller) error {
		var callers []*caller
		for range 8 {
			container, err := c.host.container()
			if err != nil {
				return err
			}
			defer container.loseNetns()
			other, err := (&attempt{c.host, container, c.spec, c.anyPort()}).libcni()
			if err != nil {
				return err
			}
			callers = append(callers, other)
		}
		add := func(other *caller) error { _, err := other.add(); return err }
		if err := atOnce(callers, add); err != nil {
			return err
		}
		for _, other := range callers {
			if err := other.isServed(other.port); err != nil {
				return err
			}
		}
		return atOnce(callers, (*caller).delete)
	})},
}

// check calls CHECK where the version has it.
func (c *caller) check() error {
	if has, err := version.GreaterThanOrEqualTo(c.list.CNIVersion, "0.4.0"); err != nil || !has {
		return err
	}
	if _, err := c.cni.GetNetworkListCachedResult(c.list, c.runtime); err != nil {
		return nil // libcni cannot convert it: it does not get as far as the plugin
	}
	return c.cni.CheckNetworkList(context.Background(), c.list, c.runtime)
}

// printGiven writes what the plugin before gave as libcni would.
func printGiven(into *bytes.Buffer, c *caller) error {
	encoded, err := json.Marshal(c.spec.result(c.container))
	if err != nil {
		return err
	}
	given, err := version.NewResult(c.spec.effective(), encoded)
	if err != nil {
		return err
	}
	return given.PrintTo(into)
}

func normalised(result types.Result) any {
	encoded, err := json.Marshal(result)
	if err != nil {
		return err
	}
	var decoded any
	if err := json.Unmarshal(encoded, &decoded); err != nil {
		return err
	}
	return decoded
}

func atOnce(callers []*caller, do func(*caller) error) error {
	failures := make([]error, len(callers))
	var group sync.WaitGroup
	for at, c := range callers {
		group.Add(1)
		go func() {
			defer group.Done()
			failures[at] = do(c)
		}()
	}
	group.Wait()
	return errors.Join(failures...)
}
