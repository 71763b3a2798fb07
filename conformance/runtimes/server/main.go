// The server in the containers: it answers on all given ports, over TCP and UDP, with its name and the client's address.
//
//	server NAME PORT...
package main

import (
	"fmt"
	"log"
	"net"
	"os"
)

func main() {
	name := os.Args[1]
	failed := make(chan error)
	for _, port := range os.Args[2:] {
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			log.Fatal(err)
		}
		packets, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			log.Fatal(err)
		}
		go func() { failed <- answerConnections(listener, name) }()
		go func() { failed <- answerPackets(packets, name) }()
	}
	log.Fatal(<-failed)
}

func answerConnections(listener net.Listener, name string) error {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		fmt.Fprint(connection, answer(name, connection.RemoteAddr()))
		connection.Close()
	}
}

func answerPackets(packets net.PacketConn, name string) error {
	buffer := make([]byte, 64)
	for {
		_, source, err := packets.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if _, err = packets.WriteTo([]byte(answer(name, source)), source); err != nil {
			return err
		}
	}
}

func answer(name string, source net.Addr) string {
	address, _, err := net.SplitHostPort(source.String())
	if err != nil {
		log.Fatal(err)
	}
	return name + " " + address
}
