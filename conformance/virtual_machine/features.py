"""Which tests show a feature, and which kernel it takes."""

from __future__ import annotations

from typing import NamedTuple

FLOOR = (5, 10)


class Feature(NamedTuple):
    """A feature, the tests that show it, the kernel that it takes, and what happens on an older one, where `below` is shown by the tests."""

    name: str
    tests: tuple[str, ...]
    since: tuple[int, int] = FLOOR
    below: str = ""


FEATURES = (
    Feature(
        "ADD, CHECK, DEL, GC, STATUS",
        (
            "test_verbs.py::test_add_passes_on_prev_result_completely",
            "test_verbs.py::test_check_succeeds_after_add[nftables]",
            "test_verbs.py::test_check_reports_missing_elements_and_rules[flush map inet quantum endpoints4-endpoints4.*8080]",
            "test_verbs.py::test_check_reports_missing_elements_and_rules[flush ruleset-inet quantum]",
            "test_verbs.py::test_del_may_be_repeated_without_namespace_and_prev_result[nftables]",
            "test_verbs.py::test_gc_keeps_the_valid_attachments_and_those_of_other_networks[nftables-cni.dev/valid-attachments]",
            "test_verbs.py::test_status_succeeds_before_and_after_the_first_add[nftables]",
            "test_state.py::test_a_refused_add_leaves_neither_record_nor_element[nftables-broken0]",
        ),
    ),
    Feature(
        "published ports over TCP, UDP and SCTP, IPv4 and IPv6",
        (
            "test_inbound.py::test_an_outside_client_reaches_a_published_port_and_the_server_sees_its_address[nftables-tcp-4]",
            "test_inbound.py::test_an_outside_client_reaches_a_published_port_and_the_server_sees_its_address[nftables-tcp-6]",
            "test_inbound.py::test_an_outside_client_reaches_a_published_port_and_the_server_sees_its_address[nftables-udp-4]",
            "test_inbound.py::test_an_outside_client_reaches_a_published_port_and_the_server_sees_its_address[nftables-udp-6]",
            "test_inbound.py::test_an_outside_client_reaches_a_published_port_and_the_server_sees_its_address[nftables-sctp-4]",
            "test_inbound.py::test_an_outside_client_reaches_a_published_port_and_the_server_sees_its_address[nftables-sctp-6]",
            "test_inbound.py::test_a_port_is_closed_again_after_del[nftables-4]",
            "test_inbound.py::test_a_port_is_closed_again_after_del[nftables-6]",
        ),
    ),
    Feature(
        "SCTP through the kernel's own sockets",
        (
            "test_sctp.py::test_an_association_with_a_published_port[nftables-4]",
            "test_sctp.py::test_an_association_with_a_published_port[nftables-6]",
            "test_sctp.py::test_an_association_of_a_container_is_masqueraded[nftables-4]",
            "test_sctp.py::test_an_association_of_a_container_is_masqueraded[nftables-6]",
        ),
    ),
    Feature(
        "a container reaches its own host port, and others'",
        (
            "test_inbound.py::test_a_container_reaches_itself_and_others_on_its_network_through_the_host[nftables-tcp-4-0]",
            "test_inbound.py::test_a_container_reaches_itself_and_others_on_its_network_through_the_host[nftables-tcp-4-1]",
            "test_inbound.py::test_a_container_reaches_itself_and_others_on_its_network_through_the_host[nftables-udp-6-0]",
        ),
    ),
    Feature(
        "outbound NAT",
        (
            "test_outbound.py::test_outgoing_traffic_has_the_hosts_address[nftables-tcp-4]",
            "test_outbound.py::test_outgoing_traffic_has_the_hosts_address[nftables-udp-6]",
            "test_outbound.py::test_outgoing_traffic_has_the_hosts_address[nftables-sctp-4]",
            "test_outbound.py::test_only_traffic_via_the_external_interface_is_masqueraded[nftables-default-True-False-4]",
            "test_outbound.py::test_only_traffic_via_the_external_interface_is_masqueraded[nftables-second-False-True-6]",
            "test_outbound.py::test_a_static_source_address_replaces_the_interfaces[nftables-4]",
            "test_outbound.py::test_a_static_source_address_replaces_the_interfaces[nftables-6]",
        ),
    ),
    Feature(
        "localhost, and its protection",
        (
            "test_localhost.py::test_the_host_reaches_a_port_at_127_0_0_1[nftables-tcp]",
            "test_localhost.py::test_the_host_reaches_a_port_at_127_0_0_1[nftables-udp]",
            "test_localhost.py::test_an_outside_host_does_not_reach_localhost_if_route_localnet_is_on[nftables-tcp]",
            "test_policies.py::test_with_ipv6_localhost_the_host_reaches_the_container_on_ipv6_loopback[tcp]",
        ),
    ),
    Feature(
        "isolation",
        ("test_isolate.py::test_an_unpublished_port_is_not_reachable_by_routing_to_the_container[nftables]",),
    ),
    Feature("conditions", ("test_policies.py::test_conditions_let_only_matching_connections_in",)),
    Feature(
        "time-outs of a published port",
        (
            "test_policies.py::test_only_translated_connections_have_our_timeout[keys1-7200-4]",
            "test_policies.py::test_only_translated_connections_have_our_timeout[keys1-7200-6]",
        ),
    ),
    Feature(
        "shared ports",
        (
            "test_shared.py::test_new_connections_are_distributed_evenly[3]",
            "test_shared.py::test_with_affinity_a_client_stays_with_one_container[4]",
        ),
    ),
    Feature(
        "a free host port is chosen, and one that a process listens on is refused",
        (
            "test_ports.py::test_a_mapping_without_a_host_port_gets_the_first_of_the_range_and_port_shows_it[nftables]",
            "test_ports.py::test_a_port_that_the_host_listens_on_is_refused_and_the_process_is_named[0.0.0.0-tcp]",
            "test_ports.py::test_a_port_that_the_host_listens_on_is_refused_and_the_process_is_named[::-udp]",
        ),
    ),
    Feature(
        "every part of the table, by itself and with all others",
        ("test_parts.py::test_a_part_that_is_added_is_listed_like_one_that_was_made_at_once[in order]",),
    ),
    Feature("the table in a user namespace", ("test_parts.py::test_the_table_is_taken_by_a_user_namespace",)),
    Feature(
        "a lost table is restored by the next ADD, and by reconcile",
        (
            "test_state.py::test_after_a_lost_ruleset_the_next_add_restores_everything[flush ruleset]",
            "test_reconcile.py::test_everything_flushed_is_restored[nftables]",
            "test_reconcile.py::test_altered_chains_are_rebuilt[flush chain inet quantum host_ports]",
        ),
    ),
    Feature(
        "an upgrade replaces the table, and keeps connections",
        (
            "test_upgrade.py::test_a_newer_version_replaces_the_table_in_one_transaction_without_losing_connections[ADD]",
            "test_damage.py::test_a_record_in_the_first_format_is_read_and_upgraded_by_the_next_add",
        ),
    ),
    Feature(
        "conntrack entries are deleted with what they belong to",
        (
            "test_conntrack.py::test_a_client_that_is_already_sending_reaches_the_container_at_once[nftables-False-4]",
            "test_conntrack.py::test_a_client_that_is_already_sending_reaches_the_container_at_once[nftables-False-6]",
            "test_conntrack.py::test_after_del_the_next_owner_of_the_address_gets_no_packets_of_an_old_connection[nftables-4]",
            "test_conntrack.py::test_after_del_the_next_owner_of_the_address_gets_no_packets_of_an_old_connection[nftables-6]",
            "test_conntrack.py::test_all_deletion_methods_select_the_same_entries[4-False-new]",
            "test_conntrack.py::test_all_deletion_methods_select_the_same_entries[4-False-many ports]",
            "test_conntrack.py::test_all_deletion_methods_select_the_same_entries[6-True-new]",
        ),
    ),
    Feature(
        "doctor, doctor --packet, list, show, metrics",
        (
            "test_doctor.py::test_a_healthy_host_has_no_problems[nftables]",
            "test_doctor.py::test_a_packet_is_traced_to_the_container[4]",
            "test_show.py::test_list_counts_the_connections_of_each_attachment[nftables]",
            "test_metrics.py::test_connections_are_counted_by_type_and_the_count_outlives_the_container[nftables]",
        ),
    ),
    Feature(
        "iptables, both variants",
        (
            "test_iptables.py::test_conditions_let_only_matching_connections_in",
            "test_iptables.py::test_lost_chains_are_restored_for_every_container[iptables-nft]",
        ),
    ),
    Feature(
        "reconcile --watch repairs the table",
        ("test_watch.py::test_smaller_damage_is_repaired_too[flush table inet quantum]",),
    ),
    Feature(
        "reconcile --watch: `nft flush ruleset` breaks no connection",
        ("test_watch.py::test_a_flush_under_traffic_breaks_no_connection_and_new_ones_are_translated[4]",),
        (5, 12),
        "the service says so when it starts, and repairs; connections open at that moment are reset",
    ),
)
