module github.com/quantum-nat/conformance/libcni_checker

go 1.24.0

require (
	github.com/containernetworking/cni v1.3.0
	golang.org/x/sys v0.29.0
)
