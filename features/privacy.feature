Feature: Privacy
  A password is known to the person who chose it, and to nobody else.

  Rule: Nobody ever sees a password, nor what is stored of it

    Scenario: Alice registers
      When Alice registers
      Then nobody has seen the password of Alice, nor what is stored of it
      And only the id, the address, the age and the time of registration are shown

    Scenario: Somebody lists everybody
      Given Alice has registered
      When somebody lists everybody
      Then nobody has seen the password of Alice, nor what is stored of it
      And only the id, the address, the age and the time of registration are shown

    Scenario: Somebody looks Alice up
      Given Alice has registered
      When somebody looks Alice up
      Then nobody has seen the password of Alice, nor what is stored of it
      And only the id, the address, the age and the time of registration are shown

    Scenario: Bob is refused because the address is taken
      Given Alice has registered as "alice@example.com"
      When Bob registers as "alice@example.com"
      Then nobody has seen the password of Bob, nor what is stored of it

    Scenario Outline: Alice is refused because of her password, "<password>"
      When Alice registers with the password "<password>"
      Then nobody has seen the password of Alice, nor what is stored of it

      Examples: Too short, and common
        | password  |
        | Jub-Jub   |
        | iloveyou1 |

    Scenario: Alice is refused because of her password, which is too long
      When Alice registers with the password "Jub-Jub" 40 times
      Then nobody has seen the password of Alice, nor what is stored of it

    Scenario: Alice is refused because of something else
      When Alice registers at the age of 17
      Then nobody has seen the password of Alice, nor what is stored of it

    Scenario: Alice is sent a welcome
      When Alice registers as "alice@example.com"
      Then a welcome is sent to "alice@example.com", and to nobody else
      And nobody has seen the password of Alice, nor what is stored of it

  Rule: What is stored does not tell the password

    Scenario: Alice's password is not stored
      When Alice registers
      Then the password of Alice is not among what is stored

