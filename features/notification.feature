Feature: Notification
  Whoever has registered is sent a welcome, apart from the registration itself.

  Rule: A new user is sent one welcome

    Scenario: Alice is welcomed
      When Alice registers as "alice@example.com"
      Then a welcome is sent to "alice@example.com", and to nobody else

    Scenario: The welcome goes to the address as it was typed
      When Alice registers as "Alice@BÜCHER.example"
      Then a welcome is sent to "Alice@BÜCHER.example", and to nobody else

    Scenario: Everybody is welcomed
      When 20 people register at once
      Then everybody who registered is sent one welcome, and nobody else is sent any

  Rule: Whoever is not registered is sent nothing

    Scenario Outline: Bob is refused, aged <age> and with the password "<password>"
      When Bob, aged <age>, registers as "bob@example.com" and with the password "<password>"
      Then nobody is sent a welcome

      Examples:
        | age | password             |
        | 17  | down the rabbit hole |
        | 18  | rabbits              |

    Scenario: Bob tries Alice's address
      Given Alice has registered as "alice@example.com"
      When Bob registers as "ALICE@example.com"
      Then a welcome is sent to "alice@example.com", and to nobody else

    Scenario: Many people try one mailbox at the same time
      When 20 people register as "alice@example.com" at once, each in another spelling
      Then everybody who registered is sent one welcome, and nobody else is sent any

  # Only a fake mail can be made to misbehave at will.
  @use.with_level=use_cases
  Rule: Trouble with mail is no trouble with registering

    Scenario: Alice's welcome cannot be sent
      Given mail to "alice@example.com" cannot be sent
      When Alice registers as "alice@example.com"
      Then she is registered
      And nobody is sent a welcome

    Scenario: Alice's welcome cannot be sent, but Bob's can
      Given mail to "alice@example.com" cannot be sent
      When Alice registers as "alice@example.com"
      And Bob registers as "bob@example.com"
      Then a welcome is sent to "bob@example.com", and to nobody else

    Scenario: Nobody waits for mail
      Given mail is held up
      When Alice registers
      Then she is registered

    Scenario: Mail that was held up arrives in the end
      Given mail is held up
      When Alice registers as "alice@example.com"
      And mail moves again
      Then a welcome is sent to "alice@example.com", and to nobody else
