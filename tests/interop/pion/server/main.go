// A TURN server of pion on 127.0.0.1. It writes {"listening": {"udp": PORT, "tcp": PORT, "tls": PORT}}, serves until it
// reads {"close": true}, and then writes {"ended": true}.
package main

import (
	"crypto/tls"
	"flag"
	"net"
	"time"

	"github.com/pion/turn/v5"

	"polynya.test/pion/lines"
)

const host = "127.0.0.1"

func port(address net.Addr) any {
	return lines.Place(address)[1]
}

func main() {
	user := flag.String("user", "", "user name")
	password := flag.String("password", "", "password")
	realm := flag.String("realm", "example.org", "realm")
	certificate := flag.String("certificate", "", "PEM file")
	key := flag.String("key", "", "PEM file")
	lifetime := flag.Duration("lifetime", 10*time.Minute, "of an allocation")
	flag.Parse()

	udp, err := net.ListenPacket("udp4", host+":0")
	if err != nil {
		lines.Fail(err)
	}
	tcp, err := net.Listen("tcp4", host+":0")
	if err != nil {
		lines.Fail(err)
	}
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		lines.Fail(err)
	}
	secure, err := tls.Listen("tcp4", host+":0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		lines.Fail(err)
	}
	relays := func() turn.RelayAddressGenerator {
		return &turn.RelayAddressGeneratorStatic{RelayAddress: net.ParseIP(host), Address: host}
	}
	server, err := turn.NewServer(turn.ServerConfig{
		Realm: *realm,
		AuthHandler: func(asked *turn.RequestAttributes) (string, []byte, bool) {
			return asked.Username, turn.GenerateAuthKey(*user, *realm, *password), asked.Username == *user
		},
		PacketConnConfigs: []turn.PacketConnConfig{{PacketConn: udp, RelayAddressGenerator: relays()}},
		ListenerConfigs: []turn.ListenerConfig{
			{Listener: tcp, RelayAddressGenerator: relays()},
			{Listener: secure, RelayAddressGenerator: relays()},
		},
		AllocationLifetime: *lifetime,
	})
	if err != nil {
		lines.Fail(err)
	}
	lines.Say(lines.Line{"listening": lines.Line{
		"udp": port(udp.LocalAddr()), "tcp": port(tcp.Addr()), "tls": port(secure.Addr()),
	}})
	for command := range lines.Commands() {
		if command["close"] != nil {
			break
		}
	}
	if err := server.Close(); err != nil {
		lines.Fail(err)
	}
	lines.Say(lines.Line{"ended": true})
}
