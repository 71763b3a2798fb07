package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	hostAddress  = "198.51.100.1"
	hostAddress6 = "2001:db8:1::1"
	ownNetns     = "/proc/self/ns/net"
	network      = "checked"
	patience     = 2 * time.Second
)

// A host is the network namespace that this program runs in, and a directory with the plugins, their state and libcni's cache.
type host struct {
	plugin    string
	directory string
	numbers   int
}

func newHost(plugin string) (*host, error) {
	plugin, err := filepath.Abs(plugin)
	if err != nil {
		return nil, err
	}
	directory, err := os.MkdirTemp("", "libcni-checker-")
	if err != nil {
		return nil, err
	}
	h := &host{plugin: plugin, directory: directory}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(h.bin(), 0o755); err != nil {
		return nil, err
	}
	for name, target := range map[string]string{before: self, behind: self, "quantum-nat": plugin} {
		if err := os.Symlink(target, filepath.Join(h.bin(), name)); err != nil {
			return nil, err
		}
	}
	if err := skipDuplicateAddressDetection(); err != nil {
		return nil, err
	}
	return h, ip(
		"link set lo up",
		"link add uplink type veth peer name outside",
		"link set outside up",
		"address add "+hostAddress+"/24 dev uplink",
		"address add "+hostAddress6+"/64 dev uplink nodad",
		"link set uplink up",
		"route add default via 198.51.100.2",
		"-6 route add default via 2001:db8:1::2",
	)
}

func (h *host) close()        { os.RemoveAll(h.directory) }
func (h *host) bin() string   { return filepath.Join(h.directory, "bin") }
func (h *host) state() string { return filepath.Join(h.directory, "state") }
func (h *host) cache() string { return filepath.Join(h.directory, "cache") }
func (h *host) number() int   { h.numbers++; return h.numbers }
func (h *host) anyPort() int  { return 10000 + h.number() }
func (h *host) record() string {
	return filepath.Join(h.directory, fmt.Sprintf("behind%d", h.number()))
}

// reset forgets whatever a check may have left, so that the next one begins with nothing.
func (h *host) reset() error {
	if h.isClean() {
		return nil
	}
	// nft before 1.0.7 has no `destroy`
	if err := run("nft", "add table inet quantum; delete table inet quantum"); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(h.state()), os.RemoveAll(h.cache()))
}

// isClean tells whether the state directory has no attachment on record.
func (h *host) isClean() bool {
	clean := true
	err := filepath.WalkDir(h.state(), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && strings.Contains(path, "attachments") {
			clean = false
		}
		return err
	})
	return clean && err == nil
}

// A container is a network namespace with an interface and a server that answers with its ID on port 80.
type container struct {
	id, netns          string
	address, gateway   string
	address6, gateway6 string
	veth               string
	listening          []net.Listener
}

func (h *host) container() (*container, error) {
	number := h.number()
	c := &container{
		id:       fmt.Sprintf("c%d", number),
		gateway:  fmt.Sprintf("10.88.%d.%d", number>>6, (number&63)<<2|1),
		address:  fmt.Sprintf("10.88.%d.%d", number>>6, (number&63)<<2|2),
		gateway6: fmt.Sprintf("fd88::%x:1", number),
		address6: fmt.Sprintf("fd88::%x:2", number),
		veth:     fmt.Sprintf("veth%d", number),
	}
	name := fmt.Sprintf("libcni-%d-%d", os.Getpid(), number)
	c.netns = "/run/netns/" + name
	if err := run("ip", "netns", "add", name); err != nil {
		return nil, err
	}
	if err := inNetns(c.netns, skipDuplicateAddressDetection); err != nil {
		return nil, err
	}
	if err := ip(
		fmt.Sprintf("link add %s type veth peer name eth0 netns %s", c.veth, name),
		fmt.Sprintf("link set %s up", c.veth),
		fmt.Sprintf("address add %s/30 dev %s", c.gateway, c.veth),
		fmt.Sprintf("address add %s/112 dev %s nodad", c.gateway6, c.veth),
	); err != nil {
		return nil, err
	}
	if err := ipIn(name,
		"link set lo up",
		"link set eth0 up",
		fmt.Sprintf("address add %s/30 dev eth0", c.address),
		fmt.Sprintf("address add %s/112 dev eth0 nodad", c.address6),
		fmt.Sprintf("route add default via %s", c.gateway),
		fmt.Sprintf("-6 route add default via %s", c.gateway6),
	); err != nil {
		return nil, err
	}
	if err := c.serve(); err != nil {
		return nil, err
	}
	return c, c.answers()
}

// serve listens in the container's namespace.
func (c *container) serve() error {
	return inNetns(c.netns, func() error {
		listening, err := net.Listen("tcp", ":80")
		if err != nil {
			return err
		}
		c.listening = append(c.listening, listening)
		go answer(listening, c.id)
		return nil
	})
}

// inNetns runs something in a namespace. The thread that entered it ends with the goroutine.
func inNetns(path string, do func() error) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		failed <- func() error {
			namespace, err := os.Open(path)
			if err != nil {
				return err
			}
			defer namespace.Close()
			if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return do()
		}()
	}()
	return <-failed
}

// skipDuplicateAddressDetection lets IPv6 addresses, also those of links, be used at once.
func skipDuplicateAddressDetection() error {
	for _, which := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/accept_dad", []byte("0"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func answer(listening net.Listener, text string) {
	for {
		connection, err := listening.Accept()
		if err != nil {
			return // closed
		}
		fmt.Fprint(connection, text)
		connection.Close()
	}
}

// loseNetns removes the container as its death does.
func (c *container) loseNetns() error {
	for _, listening := range c.listening {
		listening.Close()
	}
	c.listening = nil
	if _, err := os.Stat(c.netns); err != nil {
		return nil
	}
	return errors.Join(c.loseInterface(), run("ip", "netns", "delete", filepath.Base(c.netns)))
}

// loseInterface removes the host's end, and with it the route.
func (c *container) loseInterface() error {
	if _, err := net.InterfaceByName(c.veth); err != nil {
		return nil
	}
	return run("ip", "link", "delete", c.veth)
}

// reaches tells whose answer comes from a host port; an error where none does.
func reaches(address string, port int) (string, error) {
	connection, err := net.DialTimeout("tcp", net.JoinHostPort(address, fmt.Sprint(port)), patience)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	if err := connection.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(connection)
	return string(answer), err
}

// answers waits until the container's server can be reached without anybody's rules.
func (c *container) answers() error {
	for _, address := range []string{c.address, c.address6} {
		var err error
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
			if _, err = reaches(address, 80); err == nil {
				break
			}
		}
		if err != nil {
			return fail("the container's own address %s does not answer: %v", address, err)
		}
	}
	return nil
}

// isServed fails where a host port does not lead to the container, by both families.
func (c *container) isServed(port int) error {
	for _, address := range []string{hostAddress, hostAddress6} {
		got, err := reaches(address, port)
		if err != nil {
			return fail("host port %d on %s: %v", port, address, err)
		}
		if got != c.id {
			return fail("host port %d on %s leads to %q, not to %s", port, address, got, c.id)
		}
	}
	return nil
}

// isClosed fails where a host port leads anywhere.
func isClosed(port int) error {
	for _, address := range []string{hostAddress, hostAddress6} {
		if got, err := reaches(address, port); err == nil {
			return fail("host port %d on %s still leads to %q", port, address, got)
		}
	}
	return nil
}

func ip(commands ...string) error { return ipIn("", commands...) }

func ipIn(namespace string, commands ...string) error {
	for _, command := range commands {
		arguments := strings.Fields(command)
		if namespace != "" {
			arguments = append([]string{"-n", namespace}, arguments...)
		}
		if err := run("ip", arguments...); err != nil {
			return err
		}
	}
	return nil
}

func run(program string, arguments ...string) error {
	output, err := exec.Command(program, arguments...).CombinedOutput()
	if err != nil {
		return fail("%s %s: %v: %s", program, strings.Join(arguments, " "), err, output)
	}
	return nil
}

// An outcome is what a direct call of the plugin came to.
type outcome struct {
	status         int
	stdout, stderr []byte
}

// call runs the plugin directly. An environment variable without "=" is left out.
func (h *host) call(environment []string, input []byte) (outcome, error) {
	command := exec.Command(filepath.Join(h.bin(), "quantum-nat"))
	command.Env = append([]string{"PATH=" + os.Getenv("PATH")}, environment...)
	command.Stdin = bytes.NewReader(input)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	timer := time.AfterFunc(30*time.Second, func() { command.Process.Kill() })
	defer timer.Stop()
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return outcome{}, err
	}
	return outcome{command.ProcessState.ExitCode(), stdout.Bytes(), stderr.Bytes()}, nil
}

func (h *host) environment(verb string, c *container) []string {
	found := []string{"CNI_COMMAND=" + verb, "CNI_PATH=" + h.bin()}
	if c != nil && (verb == "ADD" || verb == "CHECK" || verb == "DEL") {
		found = append(found, "CNI_CONTAINERID="+c.id, "CNI_NETNS="+c.netns, "CNI_IFNAME=eth0")
	}
	return found
}

// ask calls a verb with a configuration.
func (h *host) ask(verb string, c *container, configuration object) (outcome, error) {
	input, err := json.Marshal(configuration)
	if err != nil {
		return outcome{}, err
	}
	return h.call(h.environment(verb, c), input)
}

// succeeds asks, and fails where the plugin does.
func (h *host) succeeds(verb string, c *container, configuration object) ([]byte, error) {
	got, err := h.ask(verb, c, configuration)
	if err != nil {
		return nil, err
	}
	if got.status != 0 {
		return nil, fail("%s fails: status %d, stdout %q, stderr %q", verb, got.status, got.stdout, got.stderr)
	}
	if verb != "ADD" && verb != "VERSION" && len(bytes.TrimSpace(got.stdout)) > 0 {
		return nil, fail("%s prints %q: it has no result", verb, got.stdout)
	}
	return got.stdout, nil
}
